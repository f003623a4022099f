//! The wire types, generated from `proto/` by the build script.

// prost and tonic write this code: it has no documentation of its own (the protos have), and its style is theirs.
#![allow(
    clippy::all,
    clippy::missing_errors_doc,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    reason = "generated code"
)]

tonic::include_proto!("pixeld.v1");

/// The Open Inference Protocol.
pub mod inference {
    tonic::include_proto!("inference");
}

/// What balancers are told of a replica's load.
pub mod orca {
    tonic::include_proto!("xds.data.orca.v3");
}

/// Every proto file of what clients are served, encoded as one `FileDescriptorSet`; what reflection answers from.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pixeld_descriptor.bin"));

/// The same of what operators are served.
pub const ADMIN_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pixeld_admin_descriptor.bin"));
