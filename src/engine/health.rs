//! Whether a model serves, as the engine sees it.

/// State of one engine; published on a watch channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Running its first evaluations.
    Warming,
    /// Serving.
    Ready,
    /// Finishing what it has; takes nothing new.
    Draining,
    /// Broken: the first cause. It takes nothing and does not come back.
    Failed(String),
}
