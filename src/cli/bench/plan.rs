//! What a run asks of a daemon: request by request a function of the seed, settled before the first is sent.

use std::time::{Duration, Instant};

use super::arrivals::{Arrivals, Draw, draw};
use super::stream::Arrived;
use super::tally::Role;
use crate::rpc::proto::{Conditioning, FlushPolicy, GenerationSpec, SamplingParams, StreamGenerateImagesRequest};

/// What keeps the load going.
#[derive(Clone, Debug)]
pub(super) enum Mode {
    /// A schedule, whatever becomes of the requests.
    Open(Arrivals),
    /// So many streams, always.
    Closed { streams: u32 },
}

/// Class labels of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Classes {
    None,
    Only(u32),
    /// Any of so many.
    Random(u32),
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) mode: Mode,
    pub(super) model: String,
    pub(super) classes: Classes,
    /// In each request.
    pub(super) images: u32,
    pub(super) flush: FlushPolicy,
    pub(super) seed: u64,
    pub(super) cancel_share: f64,
    pub(super) slow_share: f64,
    pub(super) slow_pause: Duration,
    pub(super) deadline: Option<Duration>,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    pub(super) drain: Duration,
}

impl Plan {
    /// Request `number`, which arrives at `at`.
    pub(super) fn request(&self, number: u32, at: Instant) -> Arrived {
        let class_label = match self.classes {
            Classes::None => None,
            Classes::Only(class) => Some(class),
            Classes::Random(count) => Some((draw(self.seed, number, Draw::Class) * f64::from(count)) as u32),
        };
        let spec = GenerationSpec {
            model: self.model.clone(),
            image_count: Some(self.images),
            conditioning: class_label.map(|_| Conditioning { class_label, ..Conditioning::default() }),
            sampling: Some(SamplingParams {
                seed: Some(self.seed.wrapping_add(number.into())),
                ..SamplingParams::default()
            }),
            ..GenerationSpec::default()
        };
        let request =
            StreamGenerateImagesRequest { spec: Some(spec), flush: Some(self.flush), include_log_probs: false };
        Arrived { at, role: self.role(number), deadline: self.deadline, pause: self.slow_pause, request }
    }

    fn role(&self, number: u32) -> Role {
        let drawn = draw(self.seed, number, Draw::Role);
        if drawn < self.cancel_share {
            Role::Canceller(draw(self.seed, number, Draw::Point))
        } else if drawn < self.cancel_share + self.slow_share {
            Role::Slow
        } else {
            Role::Reader
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_classes_and_seeds_are_as_asked_and_the_same_every_time() {
        let plan = Plan {
            mode: Mode::Closed { streams: 1 },
            model: "m".to_owned(),
            classes: Classes::Random(4),
            images: 2,
            flush: FlushPolicy::default(),
            seed: u64::MAX,
            cancel_share: 0.3,
            slow_share: 0.2,
            slow_pause: Duration::ZERO,
            deadline: None,
            warmup: Duration::ZERO,
            duration: Duration::ZERO,
            drain: Duration::ZERO,
        };
        let at = Instant::now();
        let all: Vec<_> = (0..10_000).map(|number| plan.request(number, at)).collect();
        let share = |is: fn(&Role) -> bool| all.iter().filter(|arrived| is(&arrived.role)).count() as f64 / 10_000.0;
        assert!((share(|role| matches!(role, Role::Canceller(_))) - 0.3).abs() < 0.015);
        assert!((share(|role| *role == Role::Slow) - 0.2).abs() < 0.012);

        let spec = |arrived: &Arrived| arrived.request.spec.clone().unwrap();
        let class = |arrived: &Arrived| spec(arrived).conditioning.unwrap().class_label.unwrap();
        for wanted in 0..4 {
            let share = all.iter().filter(|arrived| class(arrived) == wanted).count() as f64 / 10_000.0;
            assert!((share - 0.25).abs() < 0.015, "class {wanted}: {share}");
        }
        let seeds: Vec<_> = all[..3].iter().map(|arrived| spec(arrived).sampling.unwrap().seed.unwrap()).collect();
        assert_eq!(seeds, [u64::MAX, 0, 1], "every request its own images");
        let again: Vec<_> = (0..10_000).map(|number| plan.request(number, at)).collect();
        assert!(all.iter().zip(&again).all(|(a, b)| a.request == b.request && a.role == b.role));
    }
}
