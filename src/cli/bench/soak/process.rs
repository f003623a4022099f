//! The daemon from outside: what its process uses, and what its metrics say of its images.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::failure::Failure;
use crate::metric;

/// Bytes of an answer of the metrics' listener that are read: far more than all metrics take.
const MOST_METRICS: u64 = 16 << 20;

/// What a process uses at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) rss_kib: u64,
    pub(super) threads: u64,
    pub(super) descriptors: u64,
}

impl Usage {
    /// The larger of the two in each.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            rss_kib: self.rss_kib.max(other.rss_kib),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rss_kib, threads, descriptors } = self;
        write!(f, "RSS {rss_kib} KiB, {threads} threads, {descriptors} file descriptors")
    }
}

/// A process of this machine.
pub(super) struct Process {
    pid: u32,
}

impl Process {
    pub(super) fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// # Errors
    /// It is gone, or somebody else's.
    pub(super) fn usage(&self) -> Result<Usage, Failure> {
        let gone = |error: std::io::Error| Failure::Usage(format!("--pid {}: {error}", self.pid));
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).map_err(gone)?;
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).map_err(gone)?.count() as u64;
        Ok(Usage { rss_kib: field(&status, "VmRSS:"), threads: field(&status, "Threads:"), descriptors })
    }
}

/// The number in the line of `status` that begins with `name`; 0 if there is none.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// What the daemon has counted of the images of all models.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Books {
    pub(super) submitted: u64,
    pub(super) completed: u64,
    pub(super) given_up: u64,
}

impl Books {
    /// Asks the listener of the metrics.
    ///
    /// # Errors
    /// Nobody answers there.
    pub(super) async fn read(metrics: SocketAddr) -> Result<Self, Failure> {
        let ask = async {
            let mut socket = TcpStream::connect(metrics).await?;
            socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: pixeld\r\nConnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            socket.take(MOST_METRICS).read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = ask.await.map_err(|error| Failure::Unavailable(format!("--metrics {metrics}: {error}")))?;
        Ok(Self::of(&answer))
    }

    fn of(answer: &str) -> Self {
        let sum = |name: &str| {
            let samples = answer.lines().filter(|line| line.starts_with(&format!("{name}{{")));
            let numbers = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            numbers.sum::<f64>() as u64
        };
        Self {
            submitted: sum(metric::SUBMITTED.name),
            completed: sum(metric::FINISHED.name),
            given_up: sum(metric::GIVEN_UP.name),
        }
    }

    /// Images that have not ended.
    pub(super) fn here(&self) -> u64 {
        self.submitted.saturating_sub(self.completed + self.given_up)
    }
}

/// Mebibytes.
pub(super) fn mib(kib: f64) -> f64 {
    kib / 1024.0
}

/// Growth of the memory in MiB an hour, by least squares over the samples after the first quarter of the time.
pub(super) fn slope_per_hour(samples: &[(Duration, Usage)]) -> Option<f64> {
    let from = samples.last()?.0 / 4;
    let late = samples.iter().filter(|(at, _)| *at >= from);
    let points: Vec<_> = late.map(|(at, usage)| (at.as_secs_f64() / 3600.0, mib(usage.rss_kib as f64))).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (points.len() >= 10 && spread > 0.0).then(|| together / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_what_comes_after_the_warm_up() {
        let at = |seconds: u64| {
            // It grows by a mebibyte a second at first, then by one KiB every ten seconds.
            let rss_kib = if seconds < 20 { 1024 * seconds } else { 20_480 + seconds / 10 };
            (Duration::from_secs(seconds), Usage { rss_kib, threads: 1, descriptors: 1 })
        };
        let slope = slope_per_hour(&(0..100).map(at).collect::<Vec<_>>()).unwrap();
        assert!((1024.0 * slope - 360.0).abs() < 10.0, "{slope}");
        assert_eq!(slope_per_hour(&(0..9).map(at).collect::<Vec<_>>()), None);
    }

    #[test]
    fn the_books_are_those_of_all_models() {
        let answer = "# TYPE pixeld_images_submitted_total counter\npixeld_images_submitted_total{model=\"a\"} 5\n\
                      pixeld_images_submitted_total{model=\"b\"} 2\n\
                      pixeld_images_finished_total{model=\"a\",work=\"sample\"} 2\n\
                      pixeld_images_finished_total{model=\"a\",work=\"score\"} 1\n\
                      pixeld_images_given_up_total{model=\"a\"} 1\n";
        let books = Books::of(answer);
        assert_eq!(books, Books { submitted: 7, completed: 3, given_up: 1 });
        assert_eq!(books.here(), 3);
    }

    #[test]
    fn a_process_tells_what_it_uses() {
        let usage = Process::of(std::process::id()).usage().unwrap();
        assert!(usage.rss_kib > 1000 && usage.threads > 0 && usage.descriptors > 2, "{usage}");
        assert!(Process::of(u32::MAX).usage().is_err());
    }
}
