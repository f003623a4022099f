//! The effective configuration as TOML that reads back as the same.

use std::fmt;

use bytesize::ByteSize;
use humantime_serde::re::humantime::format_duration;
use toml::Value;

use super::Config;
use super::check::{AUTO, NONE};

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.models.root.as_deref().map(|root| root.to_string_lossy().into_owned()).unwrap_or_default();
        let metrics = self.metrics.listen.map(|listen| listen.to_string()).unwrap_or_default();
        let admin = self.admin.listen.as_ref().map(ToString::to_string).unwrap_or_default();
        // Quoted, since a dot in a name would begin another section.
        let aliases =
            self.models.aliases.iter().map(|(alias, model)| (format!("\"{alias}\""), Value::from(model.as_str())));
        let aliases: Vec<_> = aliases.collect();
        let aliases: Vec<_> = aliases.iter().map(|(alias, model)| (alias.as_str(), model.clone())).collect();
        let sections: [(&str, &[(&str, Value)]); 9] = [
            (
                "server",
                &[
                    ("listen", self.server.listen.to_string().into()),
                    ("max_request", size(self.server.max_request_bytes as u64)),
                    ("max_upload_memory", size(self.server.max_upload_bytes as u64)),
                    ("max_connections", self.server.max_connections.into()),
                    ("max_streams_per_connection", self.server.max_streams_per_connection.into()),
                    ("drain_timeout", format_duration(self.server.drain_timeout).to_string().into()),
                ],
            ),
            (
                "models",
                &[
                    ("root", root.into()),
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
                    ("precision", self.engine.precision.name().into()),
                    ("threads", number_or_auto(self.engine.threads)),
                    ("max_model_memory", self.engine.max_model_bytes.map_or_else(|| NONE.into(), size)),
                    ("queue_images", self.engine.engine.queue_images.into()),
                    ("score_share", self.engine.engine.score_share.into()),
                ],
            ),
            (
                "limits",
                &[
                    ("images_per_request", self.limits.images_per_request.into()),
                    ("items_per_request", self.limits.items_per_request.into()),
                ],
            ),
            ("admin", &[("listen", admin.into())]),
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

/// In the largest unit that is exact.
fn size(bytes: u64) -> Value {
    let readable = ByteSize::b(bytes).to_string();
    let exact = readable.parse() == Ok(ByteSize::b(bytes));
    Value::String(if exact { readable } else { bytes.to_string() })
}
