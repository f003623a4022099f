//! The engine thread: receive, tick, repeat.

use super::handle::Handle;
use crate::model::PixelModel;

/// Settings of one engine, from the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineConfig {
    /// Sampling images, and scoring images, that may wait.
    pub queue_images: u32,
    /// Share of the time that scoring gets while both kinds of work wait, above 0 and below 1.
    pub score_share: f64,
}

/// A running engine thread.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// Starts the thread; it warms the model up and then serves.
    ///
    /// # Errors
    /// What kept the thread from starting.
    pub fn start(_model: Box<dyn PixelModel>, _config: EngineConfig) -> std::io::Result<Self> {
        todo!()
    }

    /// A handle to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        todo!()
    }

    /// Cancels whatever is left and waits for the thread to end.
    pub fn stop(self) {
        todo!()
    }
}
