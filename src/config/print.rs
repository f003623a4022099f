//! The effective configuration as TOML that reads back as the same.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use humantime_serde::re::humantime::format_duration;
use toml::Value;

use super::Config;
use super::check::{AUTO, NONE};
use crate::security::Group;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metrics = self.metrics.listen.map(|listen| listen.to_string()).unwrap_or_default();
        let health = self.health.listen.map(|listen| listen.to_string()).unwrap_or_default();
        let admin = self.admin.listen.as_ref().map(ToString::to_string).unwrap_or_default();
        // Quoted, since a dot in a name would begin another section.
        let aliases =
            self.models.aliases.iter().map(|(alias, model)| (format!("\"{alias}\""), Value::from(model.as_str())));
        let aliases: Vec<_> = aliases.collect();
        let aliases: Vec<_> = aliases.iter().map(|(alias, model)| (alias.as_str(), model.clone())).collect();
        let path = |path: Option<&PathBuf>| {
            Value::from(path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default())
        };
        let tls = self.server.tls.as_ref();
        let tokens =
            Group::ALL.map(|group| (group.key().rsplit('.').next().unwrap_or_default(), path(self.auth.get(&group))));
        let connections = &self.server.connections;
        let sections: [(&str, &[(&str, Value)]); 12] = [
            (
                "server",
                &[
                    ("listen", self.server.listen.to_string().into()),
                    ("max_request", size(self.server.max_request_bytes as u64)),
                    ("max_upload_memory", size(self.server.max_upload_bytes as u64)),
                    ("max_connections", connections.most.into()),
                    ("max_streams_per_connection", connections.streams.into()),
                    ("handshake_timeout", time(connections.handshake_timeout)),
                    ("keepalive_interval", time(connections.keepalive_interval)),
                    ("keepalive_timeout", time(connections.keepalive_timeout)),
                    ("max_connection_idle", time(connections.idle.unwrap_or_default())),
                    ("max_connection_age", time(connections.age.unwrap_or_default())),
                    ("max_connection_age_grace", time(connections.age_grace)),
                    ("drain_delay", time(self.server.drain_delay)),
                    ("drain_timeout", time(self.server.drain_timeout)),
                ],
            ),
            (
                "server.tls",
                &[
                    ("certificate", path(tls.map(|tls| &tls.certificate))),
                    ("key", path(tls.map(|tls| &tls.key))),
                    ("client_ca", path(tls.and_then(|tls| tls.client_ca.as_ref()))),
                ],
            ),
            ("auth", &tokens),
            (
                "models",
                &[
                    ("root", path(self.models.root.as_ref())),
                    ("embedded", self.models.embedded.into()),
                    ("max_weight_bytes", size(self.models.max_weight_bytes)),
                ],
            ),
            ("models.aliases", &aliases),
            (
                "engine",
                &[
                    ("shards", number_or_auto(self.engine.shards)),
                    ("slots", number_or_auto(self.engine.slots)),
                    ("backend", self.engine.backend.name().into()),
                    ("device", self.engine.device.map_or_else(|| AUTO.to_owned(), |device| device.to_string()).into()),
                    ("cuda_libraries", path(self.engine.cuda_libraries.as_ref())),
                    ("precision", self.engine.precision.name().into()),
                    ("threads", number_or_auto(self.engine.threads)),
                    ("max_model_memory", self.engine.max_model_bytes.map_or_else(|| NONE.into(), size)),
                    ("queue_images", self.engine.engine.queue_images.into()),
                    ("score_share", self.engine.engine.score_share.into()),
                    ("batch_share", self.engine.engine.batch_share.into()),
                    ("stall_timeout", time(self.engine.engine.stall_timeout)),
                    ("stall_exit", self.engine.stall_exit.into()),
                ],
            ),
            (
                "limits",
                &[
                    ("images_per_request", self.limits.images_per_request.into()),
                    ("items_per_request", self.limits.items_per_request.into()),
                    ("queue_timeout", time(self.limits.queue_timeout)),
                    ("unread_timeout", time(self.limits.unread_timeout)),
                ],
            ),
            ("admin", &[("listen", admin.into())]),
            ("health", &[("listen", health.into())]),
            ("metrics", &[("listen", metrics.into())]),
            ("log", &[("filter", self.log.filter.clone().into()), ("json", self.log.json.into())]),
            (
                "trace",
                &[
                    ("endpoint", self.trace.endpoint.clone().unwrap_or_default().into()),
                    ("ratio", self.trace.ratio.into()),
                ],
            ),
        ];
        for (index, (name, settings)) in sections.into_iter().enumerate() {
            writeln!(f, "{}[{name}]", if index == 0 { "" } else { "\n" })?;
            for (key, value) in settings {
                writeln!(f, "{key} = {value}")?;
            }
        }
        Ok(())
    }
}

fn number_or_auto(number: Option<u32>) -> Value {
    number.map_or_else(|| AUTO.into(), Value::from)
}

fn time(time: Duration) -> Value {
    format_duration(time).to_string().into()
}

/// In the largest unit that is exact.
fn size(bytes: u64) -> Value {
    let readable = ByteSize::b(bytes).to_string();
    let exact = readable.parse() == Ok(ByteSize::b(bytes));
    Value::String(if exact { readable } else { bytes.to_string() })
}
