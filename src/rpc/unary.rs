//! The answer of a call that has one: given back when nobody takes it, as streams of answers are (`lease`).

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::HeaderMap;
use http_body::{Body, Frame};
use tonic::Status;

use super::call::Verdict;
use super::lease::{Lease, Progress};
use crate::error::Error;

/// Bytes a second that a client has to take of a large answer, beyond the silence that it may have.
const BYTES_A_SECOND: u32 = 64 << 10;
/// What goes to the transport at once. It keeps one of them, and one more in hand, however long the client waits; an answer that
/// is no larger is all there.
const PIECE: usize = 16 << 10;

/// An answer under watch.
pub(super) struct Unary(Lease<Frame<Bytes>>);

impl Unary {
    /// `body`, until the deadline, and for as long as it does not lie unread for `max_silence`.
    pub(super) fn lease(
        body: tonic::body::Body,
        deadline: Option<Instant>,
        max_silence: Duration,
        told: Verdict,
    ) -> tonic::body::Body {
        let progress = Arc::new(Progress::default());
        tonic::body::Body::new(Self(Lease::new(
            pieces(body, max_silence),
            deadline,
            max_silence,
            progress,
            pending(),
            told,
        )))
    }
}

/// The frames of `body`, the large ones in pieces, all of which must be taken in time: the last one keeps them all.
fn pieces(body: tonic::body::Body, max_silence: Duration) -> impl Stream<Item = Result<Frame<Bytes>, Error>> + Send {
    let until = tokio::time::Instant::now();
    stream::unfold((body, Bytes::new(), until), move |(mut body, mut rest, mut until)| async move {
        if rest.is_empty() {
            let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await?;
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) if data.len() > PIECE => {
                    let allowed = max_silence + Duration::from_secs(data.len() as u64) / BYTES_A_SECOND;
                    (rest, until) = (data, tokio::time::Instant::now() + allowed);
                }
                Ok(Ok(data)) => return Some((Ok(Frame::data(data)), (body, rest, until))),
                Ok(Err(trailers)) => return Some((Ok(trailers), (body, rest, until))),
                Err(status) => {
                    return Some((Err(Error::EngineFault(status.message().to_owned())), (body, Bytes::new(), until)));
                }
            }
        }
        if tokio::time::Instant::now() > until {
            let late = Error::ClientTooSlow { values: 0, ranks: Vec::new() };
            return Some((Err(late), (body, Bytes::new(), until)));
        }
        // Copied, since a part of it would keep all of it.
        let piece = Bytes::copy_from_slice(&rest.split_to(PIECE.min(rest.len())));
        Some((Ok(Frame::data(piece)), (body, rest, until)))
    })
}

impl Body for Unary {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_next(context).map(|item| {
            item.map(|frame| {
                frame.or_else(|status| {
                    let mut trailers = HeaderMap::new();
                    status.add_header(&mut trailers)?;
                    Ok(Frame::trailers(trailers))
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const MAX_SILENCE: Duration = Duration::from_secs(30);

    /// A body of one frame and trailers.
    struct Whole(Option<Bytes>, Option<HeaderMap>);

    impl Body for Whole {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let data = self.0.take().map(Frame::data);
            Poll::Ready(data.or_else(|| self.1.take().map(Frame::trailers)).map(Ok))
        }
    }

    async fn next(body: &mut tonic::body::Body) -> Option<Frame<Bytes>> {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.transpose().unwrap()
    }

    fn answer(data: Bytes, told: &Verdict) -> tonic::body::Body {
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let body = tonic::body::Body::new(Whole(Some(data), Some(trailers)));
        Unary::lease(body, None, MAX_SILENCE, told.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_comes_in_pieces_and_keeps_nothing_of_what_was_taken_or_left() {
        let data: Vec<u8> = (0..100_000u32).map(|index| index as u8).collect();
        let (told, mut taken) = (Verdict::default(), Vec::new());
        let mut body = answer(data.clone().into(), &told);
        loop {
            let frame = next(&mut body).await.unwrap();
            match frame.into_data() {
                Ok(piece) => {
                    assert!(piece.len() <= PIECE && piece.is_unique(), "{}", piece.len());
                    taken.extend_from_slice(&piece);
                }
                Err(trailers) => break assert_eq!(trailers.trailers_ref().unwrap()["grpc-status"], "0"),
            }
        }
        assert_eq!(taken, data);
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_dropped() {
        let (told, data) = (Verdict::default(), Bytes::from(vec![7; 100_000]));
        let mut body = answer(data.clone(), &told);
        assert!(next(&mut body).await.is_some());
        tokio::time::advance(MAX_SILENCE - Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
        assert!(!data.is_unique(), "it is waited for");
        tokio::time::advance(Duration::from_secs(2)).await;
        while !data.is_unique() {
            tokio::task::yield_now().await;
        }
        let end = next(&mut body).await.unwrap();
        assert_eq!(Status::from_header_map(end.trailers_ref().unwrap()).unwrap().code(), Code::Aborted);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_taken_in_drips_is_dropped() {
        let data = Bytes::from(vec![7; 1 << 20]);
        let mut body = answer(data.clone(), &Verdict::default());
        let mut pieces = 0;
        // 30 s, and 16 for a megabyte.
        let end = loop {
            match next(&mut body).await.unwrap().into_data() {
                Ok(_) => pieces += 1,
                Err(trailers) => break trailers,
            }
            tokio::time::advance(MAX_SILENCE / 2).await;
        };
        assert_eq!(pieces, 4);
        assert_eq!(Status::from_header_map(end.trailers_ref().unwrap()).unwrap().code(), Code::Aborted);
        assert!(data.is_unique());
    }
}
