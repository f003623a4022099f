//! One request, from its arrival to its end, whatever that is.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use super::tally::{Ended, Ending, Role, Seen, Tally};
use crate::cli::access::Channel;
use crate::cli::assembly::Assembly;
use crate::cli::client;
use crate::cli::failure::Failure;
use crate::rpc::proto::generation_service_client::GenerationServiceClient;
use crate::rpc::proto::stream_generate_images_response::Event;
use crate::rpc::proto::{SampledValues, StreamGenerateImagesRequest};

/// A request that has arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) at: Instant,
    pub(super) role: Role,
    /// Counted from the arrival, as its user would.
    pub(super) deadline: Option<Duration>,
    /// How long a slow reader stops.
    pub(super) pause: Duration,
    pub(super) request: StreamGenerateImagesRequest,
}

/// The stream as far as it was read.
struct Reading<'a> {
    arrived: Arrived,
    tally: &'a Tally,
    images: Vec<Seen>,
    /// From `started` on.
    assembly: Option<Assembly>,
    received: u64,
}

impl Arrived {
    fn images(&self) -> u32 {
        self.request.spec.as_ref().map_or(1, |spec| spec.image_count())
    }

    /// Sends the request and reads its answer until it has ended or `end` comes; all of it goes into `tally`.
    ///
    /// # Errors
    /// If the request makes no sense, or the answer does not: no other would do better.
    pub(super) async fn run(self, channel: Channel, tally: &Tally, end: &CancellationToken) -> Result<Ending, Failure> {
        let images = vec![Seen::default(); self.images() as usize];
        let mut reading = Reading { arrived: self, tally, images, assembly: None, received: 0 };
        let ending = end.run_until_cancelled(reading.read(channel)).await.unwrap_or(Ok(Ending::Unfinished))?;
        reading.ended(ending, Instant::now());
        Ok(ending)
    }

    /// There are too many open streams for one more: to its user it has no answer when the run closes.
    pub(super) fn unsent(self, tally: &Tally, closes: Instant) {
        let images = vec![Seen::default(); self.images() as usize];
        Reading { arrived: self, tally, images, assembly: None, received: 0 }.ended(Ending::Unsent, closes);
    }
}

impl Reading<'_> {
    fn ended(&self, ending: Ending, at: Instant) {
        let Arrived { at: arrived, role, .. } = self.arrived;
        let image_values = self.assembly.as_ref().map(|assembly| assembly.shape.values());
        self.tally.ended(&Ended { arrived, role, ending, at, images: &self.images, image_values });
    }

    async fn read(&mut self, channel: Channel) -> Result<Ending, Failure> {
        let now = Instant::now();
        self.tally.sent(self.arrived.at, now);
        let mut request = Request::new(self.arrived.request.clone());
        if let Some(deadline) = self.arrived.deadline {
            request.set_timeout((self.arrived.at + deadline).saturating_duration_since(now));
        }
        let mut client = GenerationServiceClient::new(channel).max_decoding_message_size(client::MAX_ANSWER);
        let mut stream = match client.stream_generate_images(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return self.status(status),
        };
        loop {
            let event = match stream.message().await {
                Ok(Some(message)) => message.event,
                Ok(None) => return Err(broken("it was cut")),
                Err(status) => return self.status(status),
            };
            let now = Instant::now();
            match event {
                Some(Event::Started(started)) if self.assembly.is_none() => {
                    let assembly = Assembly::new(started, self.arrived.images(), &[]).map_err(|what| broken(&what))?;
                    self.assembly = Some(assembly);
                    if self.arrived.role == Role::Slow {
                        tokio::time::sleep_until((now + self.arrived.pause).into()).await;
                    }
                }
                Some(Event::Sampled(sampled)) => self.values(&sampled, now).map_err(|what| broken(&what))?,
                Some(Event::Completed(completed)) => {
                    let assembly = self.assembly.as_ref().ok_or_else(|| broken("it ended before it started"))?;
                    assembly.finish(&completed).map_err(|what| broken(&what))?;
                    return Ok(Ending::Completed);
                }
                _ => return Err(broken("its events came in an order that makes no sense")),
            }
            if let (Role::Canceller(share), Some(assembly)) = (self.arrived.role, &self.assembly)
                && self.received as f64 >= share * assembly.total() as f64
            {
                return Ok(Ending::Cancelled);
            }
        }
    }

    /// Takes in one message.
    fn values(&mut self, sampled: &SampledValues, now: Instant) -> Result<(), String> {
        let assembly = self.assembly.as_mut().ok_or("values came before it started")?;
        let mut runs = Vec::with_capacity(sampled.runs.len());
        for run in &sampled.runs {
            let count = assembly.add(run)?;
            self.received += count;
            let Some(image) = self.images.get_mut(run.image_index as usize) else { continue };
            runs.push((count as u32, image.last));
            image.values += count as u32;
            image.first.get_or_insert(now);
            image.last = Some(now);
        }
        self.tally.message(self.arrived.at, self.arrived.role, now, &runs);
        Ok(())
    }

    fn status(&self, status: Status) -> Result<Ending, Failure> {
        let late = self.arrived.deadline.is_some_and(|deadline| self.arrived.at.elapsed() >= deadline);
        match status.code() {
            Code::ResourceExhausted | Code::Unavailable if self.assembly.is_none() => {
                Ok(Ending::Refused(status.code()))
            }
            // What would be late was not begun.
            Code::DeadlineExceeded if self.assembly.is_none() && !late => Ok(Ending::Refused(status.code())),
            // What the transport says when it was the first to see the deadline pass.
            Code::Cancelled if late => Ok(Ending::Failed(Code::DeadlineExceeded)),
            code => match Failure::from(status) {
                // It would be refused every time.
                failure @ Failure::Usage(_) => Err(failure),
                _ => Ok(Ending::Failed(code)),
            },
        }
    }
}

fn broken(what: &str) -> Failure {
    Failure::Internal(format!("a stream is broken: {what}"))
}
