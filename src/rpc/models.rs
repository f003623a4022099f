//! The model catalogue service.

use tonic::{Request, Response, Status};

use super::answer;
use super::proto::model_service_server::ModelService;
use super::proto::{GetModelRequest, GetModelResponse, ListModelsRequest, ListModelsResponse, Model};
use super::status::status;
use crate::engine::catalogue::Catalogue;
use crate::error::{Error, Violations};

const DEFAULT_PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// Lists models.
#[derive(Clone, Debug)]
pub(super) struct Models {
    pub(super) catalogue: Catalogue,
}

#[tonic::async_trait]
impl ModelService for Models {
    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        let ListModelsRequest { page_size, page_token } = request.into_inner();
        let size = match usize::try_from(page_size) {
            Ok(0) => DEFAULT_PAGE,
            Ok(size) => size.min(LARGEST_PAGE),
            Err(_) => {
                let mut violations = Violations::new();
                violations.add("page_size", format!("must not be negative, got {page_size}"));
                return Err(status(&Error::Invalid(violations)));
            }
        };
        let (draining, aliases) = (self.catalogue.is_draining(), self.catalogue.aliases());
        // A token is the first name of its page, so it stays good while models come and go.
        let mut rest = self.catalogue.list().into_iter().skip_while(|(name, _)| *name < page_token);
        let page = rest.by_ref().take(size).map(|(name, state)| Model {
            aliases: answer::aliases(&aliases, &name),
            ..answer::model(&name, &state, draining)
        });
        let models = page.collect();
        let next_page_token = rest.next().map(|(name, _)| name).unwrap_or_default();
        Ok(Response::new(ListModelsResponse { models, next_page_token }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<GetModelResponse>, Status> {
        let (name, state) = self.catalogue.get(&request.into_inner().name).map_err(|error| status(&error))?;
        let mut model = answer::model(&name, &state, self.catalogue.is_draining());
        model.aliases = answer::aliases(&self.catalogue.aliases(), &name);
        if let Some(handle) = state.handle()
            && let Some(palette) = &handle.spec().palette
        {
            model.exact_palette = palette.colours().as_flattened().to_vec();
        }
        Ok(Response::new(GetModelResponse { model: Some(model) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::catalogue::State;

    #[tokio::test]
    async fn pages_hold_every_model_once_and_in_order() {
        let catalogue = Catalogue::new();
        let names: Vec<String> = (0..7).map(|index| format!("m{index}")).collect();
        names.iter().for_each(|name| catalogue.set(name, State::Loading));
        let service = Models { catalogue };
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListModelsRequest { page_size: 3, page_token };
            let page = service.list_models(Request::new(request)).await.unwrap().into_inner();
            assert!(page.models.len() <= 3);
            seen.extend(page.models.into_iter().map(|model| model.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, names.iter().map(|name| format!("models/{name}")).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_page_of_packages_with_endless_faults_can_still_be_received() {
        let catalogue = Catalogue::new();
        (0..DEFAULT_PAGE).for_each(|index| {
            catalogue.set(&format!("m{index}"), State::Failed { why: "\u{1F600}".repeat(1 << 14) });
        });
        let page = Models { catalogue }.list_models(Request::new(ListModelsRequest::default())).await.unwrap();
        assert_eq!(page.get_ref().models.len(), DEFAULT_PAGE);
        let bytes = prost::Message::encoded_len(page.get_ref());
        assert!(bytes < 4 << 20, "{bytes} bytes");
    }
}
