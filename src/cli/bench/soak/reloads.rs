//! A client that reloads models from packages which it changes: new revisions must take over, spoilt ones must not.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::Chance;
use super::clients::told;
use crate::cli::access::Channel;
use crate::cli::client;
use crate::cli::failure::Failure;
use crate::rpc::proto::admin_service_client::AdminServiceClient;
use crate::rpc::proto::{Model, ReloadModelRequest};

/// What comes of the reload of a spoilt package: the old revision goes on.
pub(super) const KEPT: &str = "kept";

/// The daemon as its operator sees it, and a folder with the packages that it serves.
pub(super) struct Packages {
    admin: Channel,
    folder: PathBuf,
    /// Manifests as they were at first, by name.
    manifests: BTreeMap<String, String>,
}

impl Packages {
    /// # Errors
    /// One of the models has no manifest in `folder`.
    pub(super) fn new(admin: Channel, folder: PathBuf, models: &[Model]) -> Result<Self, Failure> {
        let manifest = |model: &Model| {
            let name = client::short(&model.name).to_owned();
            let path = folder.join(&name).join("model.toml");
            let text = fs::read_to_string(&path)
                .map_err(|error| Failure::Usage(format!("--packages: {}: {error}", path.display())))?;
            Ok((name, text))
        };
        let manifests = models.iter().map(manifest).collect::<Result<_, Failure>>()?;
        Ok(Self { admin, folder, manifests })
    }

    /// Reloads one of the models, from a package that was spoilt one time in three. `channel` is that of clients.
    pub(super) async fn reload(&self, channel: &Channel, chance: &mut Chance) -> String {
        self.attempt(channel, chance).await.unwrap_or_else(|what| what)
    }

    async fn attempt(&self, channel: &Channel, chance: &mut Chance) -> Result<String, String> {
        let chosen = chance.below(self.manifests.len() as u32) as usize;
        let (name, manifest) = self.manifests.iter().nth(chosen).ok_or("there are no packages")?;
        let (spoilt, new) = match chance.below(6) {
            0 => (true, String::new()),
            1 => (true, with_another_digest(manifest)),
            _ => (false, format!("{manifest}\n# {}\n", chance.below(u32::MAX))),
        };
        let write = |text: &str| fs::write(self.folder.join(name).join("model.toml"), text);
        write(&new).map_err(|error| error.to_string())?;
        let before = revision(channel, name).await?;
        let request = ReloadModelRequest { name: name.clone(), drain_timeout: None };
        let answer = AdminServiceClient::new(self.admin.clone()).reload_model(request).await;
        write(manifest).map_err(|error| error.to_string())?;
        let now = revision(channel, name).await?;
        Ok(match answer.map(tonic::Response::into_inner).map_err(|status| told(&status)) {
            Ok(_) if spoilt => "a spoilt package was loaded".to_owned(),
            Err(_) if now != before => "a reload failed, and another revision serves".to_owned(),
            Err(what) if spoilt && what == "FailedPrecondition RELOAD_FAILED" => KEPT.to_owned(),
            Err(what) => what,
            Ok(answer) => {
                let told = answer.model.unwrap_or_default().revision;
                let took_over = answer.previous_revision == before && told == now && now != before;
                let what = if took_over { "OK" } else { "a reload that did not change the revision" };
                what.to_owned()
            }
        })
    }
}

async fn revision(channel: &Channel, name: &str) -> Result<String, String> {
    let model = client::get(channel, name).await.map_err(|failure| format!("{failure:?}"))?;
    Ok(model.revision)
}

/// A manifest whose weights are not those of the file, or one that says nothing if it has none.
fn with_another_digest(manifest: &str) -> String {
    let (key, digits) = ("sha256 = \"", "0123456789abcdef");
    let Some((before, after)) = manifest.split_once(key) else { return String::new() };
    let next = |digit: char| digits.chars().cycle().skip_while(|it| *it != digit.to_ascii_lowercase()).nth(1);
    let (digest, rest) = after.split_at(after.find('"').unwrap_or(after.len()));
    let digest: String = digest.chars().map(|digit| next(digit).unwrap_or('0')).collect();
    format!("{before}{key}{digest}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_digest_is_one_and_nothing_else_changes() {
        let manifest = "format = 1\n[weights]\nsha256 = \"09af\"\nfile = \"w\"\n";
        assert_eq!(with_another_digest(manifest), manifest.replace("09af", "1ab0"));
        assert_eq!(with_another_digest("format = 1\n"), "");
    }
}
