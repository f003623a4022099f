//! What the commands ask of a server beside their own work.

use super::access::Channel;
use super::failure::Failure;
use crate::rpc::proto::model_service_client::ModelServiceClient;
use crate::rpc::proto::{Backend, GetModelRequest, ListModelsRequest, Model, ModelState, Precision};

/// Largest answer that is taken: log-probabilities of every value of the largest image are a quarter of it.
pub(super) const MAX_ANSWER: usize = 16 << 20;
/// No catalogue is longer; a server that goes on handing out pages is broken.
const MAX_PAGES: usize = 1000;

/// Every model there is.
pub(super) async fn list(channel: &Channel) -> Result<Vec<Model>, Failure> {
    let mut client = ModelServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
    let (mut models, mut page_token) = (Vec::new(), String::new());
    for _ in 0..MAX_PAGES {
        let page = client.list_models(ListModelsRequest { page_size: 0, page_token }).await?.into_inner();
        models.extend(page.models);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(models);
        }
    }
    Err(Failure::Internal(format!("the list of models has no end after {MAX_PAGES} pages")))
}

/// The model of that name; of an empty name, the only one there is.
pub(super) async fn get(channel: &Channel, name: &str) -> Result<Model, Failure> {
    let name = match name {
        "" => match list(channel).await?.as_slice() {
            [] => return Err(Failure::Usage("there are no models; name a directory of packages with --models".into())),
            [only] => only.name.clone(),
            several => {
                let names: Vec<_> = several.iter().map(|model| short(&model.name)).collect();
                let names = names.join(", ");
                return Err(Failure::Usage(format!("there are several models, choose one with --model: {names}")));
            }
        },
        bare if !bare.contains('/') => format!("models/{bare}"),
        full => full.to_owned(),
    };
    let mut client = ModelServiceClient::new(channel.clone());
    let answer = client.get_model(GetModelRequest { name }).await?.into_inner();
    answer.model.ok_or_else(|| Failure::Internal("the server described no model".to_owned()))
}

/// The name without its collection.
pub(super) fn short(name: &str) -> &str {
    name.strip_prefix("models/").unwrap_or(name)
}

/// The state as a word.
pub(super) fn state(model: &Model) -> &'static str {
    state_word(model.state())
}

/// The same of a state.
pub(super) fn state_word(state: ModelState) -> &'static str {
    match state {
        ModelState::Unspecified => "unknown",
        ModelState::Loading => "loading",
        ModelState::Warming => "warming",
        ModelState::Ready => "ready",
        ModelState::Draining => "draining",
        ModelState::Failed => "failed",
    }
}

/// The backend as a word.
pub(super) fn backend(backend: Backend) -> &'static str {
    match backend {
        Backend::Unspecified => "unknown",
        Backend::Native => "native",
        Backend::Torch => "torch",
    }
}

/// The precision as a word.
pub(super) fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Unspecified => "unknown",
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}
