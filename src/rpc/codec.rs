//! Protobuf as the framework reads it, for messages that are not made of crumbs.
//!
//! An item that says nothing takes two bytes on the wire and a hundred times as much in memory, so a message within every
//! limit of length could ask for gigabytes. Its fields are counted before any room is made for them.

use bytes::Buf;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::job::Limits;

/// Fields of a message, those of the messages in it left out: items or images as many as the configuration may allow, and
/// what stands beside them.
const MAX_FIELDS: u32 = 2 * Limits::MOST;

/// [`ProstCodec`] with a bound on what it reads.
pub(super) struct Bounded<T, U>(ProstCodec<T, U>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(self.0.decoder())
    }
}

/// What [`Bounded`] reads with.
pub(super) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The whole message lies in one piece.
        check_fields(message.chunk()).map_err(Status::internal)?;
        self.0.decode(message)
    }
}

/// Refuses a message of too many fields. What is malformed is told by the decoder, which knows where.
///
/// # Errors
/// How many it may have.
pub(super) fn check_fields(message: &[u8]) -> Result<(), String> {
    match fields(message) {
        Ok(count) if count > MAX_FIELDS => Err(format!("must have at most {MAX_FIELDS} fields")),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Fields of `message`, counted until there are too many.
fn fields(mut message: &[u8]) -> Result<u32, DecodeError> {
    let mut count = 0;
    while message.has_remaining() && count <= MAX_FIELDS {
        let (tag, wire_type) = decode_key(&mut message)?;
        skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
        count += 1;
    }
    Ok(count)
}
