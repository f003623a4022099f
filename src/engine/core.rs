//! One tick of the engine: plan, execute, commit. No thread, no tokio runtime; driven by hand in tests.
