//! The layers of the configuration, its faults, and what is printed of it.

use std::io::Write;
use std::time::Duration;

use config::Map;

use super::layers::DEFAULTS;
use super::*;
use super::{Health, Metrics};
use crate::error::Violations;

fn environment(variables: &[(&str, &str)]) -> Option<Map<String, String>> {
    Some(variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn set(key: &str, value: &str) -> Flag {
    Flag { name: "--set", key: key.to_owned(), value: value.to_owned() }
}

fn isolated() -> Layers {
    Layers { environment: environment(&[]), ..Layers::default() }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn fields(violations: &Violations) -> Vec<&str> {
    violations.iter().map(|violation| violation.field.as_str()).collect()
}

#[test]
fn the_defaults_are_those_of_the_example_file() {
    let expected = Config {
        server: Server {
            listen: "127.0.0.1:50051".parse().unwrap(),
            max_request_bytes: 16 << 20,
            max_upload_bytes: 256 << 20,
            connections: ConnectionLimits {
                most: 512,
                streams: 1024,
                handshake_timeout: Duration::from_secs(10),
                keepalive_interval: Duration::from_secs(30),
                keepalive_timeout: Duration::from_secs(10),
                idle: Some(Duration::from_secs(15 * 60)),
                age: None,
                age_grace: Duration::from_secs(5 * 60),
                unread_timeout: Duration::from_secs(30),
            },
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            tls: None,
        },
        auth: TokenFiles::new(),
        models: Models { root: None, embedded: true, max_weight_bytes: 8 << 30, aliases: BTreeMap::new() },
        engine: Engine {
            shards: None,
            slots: None,
            backend: Backend::Native,
            device: Some(Device::Cpu),
            cuda_libraries: None,
            precision: Precision::F32,
            threads: None,
            max_model_bytes: None,
            stall_exit: false,
            engine: EngineConfig::default(),
        },
        admin: Admin::default(),
        limits: Limits {
            images_per_request: 256,
            items_per_request: 256,
            queue_timeout: Duration::from_secs(3600),
            unread_timeout: Duration::from_secs(30),
        },
        health: Health::default(),
        metrics: Metrics::default(),
        log: Log { filter: "info".to_owned(), json: false },
        trace: Trace { endpoint: None, ratio: 1.0 },
    };
    assert_eq!(load(&isolated()), Ok(expected.clone()));
    let example = file(DEFAULTS);
    assert_eq!(load(&Layers { file: Some(example.path().to_owned()), ..isolated() }), Ok(expected));
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let file = file("[engine]\nslots = 2\nthreads = 2\nqueue_images = 300\n[log]\nfilter = \"debug\"\n");
    let layers = Layers {
        default_log_filter: Some("warn"),
        file: Some(file.path().to_owned()),
        environment: environment(&[("PIXELD__ENGINE__THREADS", "3"), ("PIXELD__ENGINE__QUEUE_IMAGES", "301")]),
        flags: vec![set("engine.queue_images", "302"), set("models.root", "/models")],
    };
    let config = load(&layers).unwrap();
    let engine = config.engine;
    assert_eq!((engine.slots, engine.threads, engine.engine.queue_images), (Some(2), Some(3), 302));
    assert_eq!(config.models.root.as_deref(), Some(std::path::Path::new("/models")));
    assert_eq!(config.log.filter, "debug");
    assert_eq!(load(&Layers { file: None, ..layers }).unwrap().log.filter, "warn");
}

#[test]
fn every_fault_is_reported_at_once_with_its_origin() {
    let file = file(
        "[server]\nlisten = \"localhost\"\ndrain_delay = \"soon\"\ndrain_timeout = \"-3s\"\nmax_connection_age = \"1ms\"\nkeepalive_timeout = \"0s\"\nmax_request = \"much\"\n\
         [engine]\nshards = \"all\"\nslots = 0\nbackend = \"cuda\"\ndevice = \"gpu\"\nprecision = \"f16\"\nscore_share = 1.0\nbatch_share = 0\nstall_timeout = \"0s\"\nstall_exit = 2\nthreads = 2.5\n[log]\njson = \"perhaps\"\n",
    );
    let layers = Layers {
        file: Some(file.path().to_owned()),
        environment: environment(&[("PIXELD__ENGINE__QUEUE_IMAGES", "many"), ("PIXELD__LIMITS", "none")]),
        flags: vec![set("log.filter", "pixeld=loud"), set("models.max_weight_bytes", "2 TiB")],
        ..isolated()
    };
    let violations = load(&layers).unwrap_err();
    let expected = [
        "server.listen",
        "server.max_request",
        "server.keepalive_timeout",
        "server.max_connection_age",
        "server.drain_delay",
        "server.drain_timeout",
        "models.max_weight_bytes",
        "engine.shards",
        "engine.slots",
        "engine.backend",
        "engine.device",
        "engine.precision",
        "engine.threads",
        "engine.queue_images",
        "engine.score_share",
        "engine.batch_share",
        "engine.stall_timeout",
        "engine.stall_exit",
        "limits.images_per_request",
        "limits.items_per_request",
        "limits.queue_timeout",
        "limits.unread_timeout",
        "log.filter",
        "log.json",
        "limits",
    ];
    assert_eq!(fields(&violations), expected);
    let text = violations.to_string();
    assert!(text.contains("got \"many\" (from PIXELD__ENGINE__QUEUE_IMAGES)"), "{text}");
    assert!(text.contains("got \"2 TiB\" (from --set)"), "{text}");
    assert!(text.contains(&format!("got \"0\" (from {})", file.path().display())), "{text}");
}

#[test]
fn a_device_is_the_processor_a_gpu_or_what_there_is_and_kernels_of_our_own_take_no_gpu() {
    let with = |device: &str, backend: &str| {
        load(&Layers { flags: vec![set("engine.device", device), set("engine.backend", backend)], ..isolated() })
    };
    let engine = |device| with(device, "torch").unwrap().engine;
    assert_eq!(engine("cpu").device, Some(Device::Cpu));
    assert_eq!((engine("auto").device, engine("cuda:1").device), (None, Some(Device::Cuda(1))));
    assert_eq!(engine("cuda:1").shards(), 1, "a GPU is one");
    for wrong in ["cuda", "cuda:", "cuda:-1", "cuda:64", "CPU", ""] {
        assert_eq!(fields(&with(wrong, "torch").unwrap_err()), ["engine.device"], "{wrong}");
    }
    assert_eq!(fields(&with("cuda:0", "native").unwrap_err()), ["engine.backend"]);
    assert!(with("auto", "native").is_ok());
}

#[test]
fn a_setting_that_does_not_exist_is_refused_wherever_it_comes_from() {
    let file = file("[server]\nlisten_address = \"127.0.0.1:1\"\n[sever]\nlisten = \"127.0.0.1:1\"\n");
    let layers = Layers {
        file: Some(file.path().to_owned()),
        environment: environment(&[("PIXELD__SERVER__PORT", "1"), ("PIXELD_PORT", "tcp://10.0.0.1:1")]),
        flags: vec![set("engine.slot", "3")],
        ..isolated()
    };
    let violations = load(&layers).unwrap_err();
    assert_eq!(fields(&violations), ["engine.slot", "server.listen_address", "server.port", "sever.listen"]);
    let text = violations.to_string();
    assert!(text.contains("is not a setting (from PIXELD__SERVER__PORT); there are server.listen, "), "{text}");
    assert!(text.contains("is not a setting (from --set); there are engine.shards, "), "{text}");
}

#[test]
fn aliases_are_read_from_every_layer_and_must_be_names() {
    let file = file("[models.aliases]\nstable = \"digits\"\n\"v1.2\" = \"letters\"\n");
    let layers = Layers {
        file: Some(file.path().to_owned()),
        environment: environment(&[("PIXELD__MODELS__ALIASES__CANARY", "models/digits")]),
        flags: vec![set("models.aliases.stable", "letters")],
        ..isolated()
    };
    let expected = [("canary", "digits"), ("stable", "letters"), ("v1.2", "letters")];
    let expected = expected.map(|(alias, model)| (alias.to_owned(), model.to_owned()));
    assert_eq!(load(&layers).unwrap().models.aliases, BTreeMap::from(expected));
    let wrong = [set("models.aliases.a b", "digits"), set("models.aliases.c", ""), set("models.aliases.d", "E")];
    for flag in wrong.clone() {
        assert!(load(&Layers { flags: vec![flag.clone()], ..isolated() }).is_err(), "{flag:?}");
    }
}

#[test]
fn operators_are_served_on_a_socket_with_a_whole_path_or_on_this_machine_alone() {
    let listen =
        |text| load(&Layers { flags: vec![set("admin.listen", text)], ..isolated() }).map(|it| it.admin.listen);
    assert_eq!(listen(""), Ok(None));
    assert_eq!(listen("unix:/run/a.sock"), Ok(Some(AdminAddress::Unix("/run/a.sock".into()))));
    assert_eq!(listen("[::1]:7"), Ok(Some(AdminAddress::Loopback("[::1]:7".parse().unwrap()))));
    for wrong in ["unix:run/a.sock", "unix:", "/run/a.sock", "0.0.0.0:50052", "192.0.2.1:1", "localhost:1"] {
        assert_eq!(fields(&listen(wrong).unwrap_err()), ["admin.listen"], "{wrong}");
    }
}

#[test]
fn limits_that_the_queue_could_never_hold_are_refused() {
    let violations = load(&Layers { flags: vec![set("engine.queue_images", "255")], ..isolated() }).unwrap_err();
    assert_eq!(fields(&violations), ["limits.images_per_request", "limits.items_per_request"]);
}

#[test]
fn messages_that_the_memory_for_them_could_never_hold_are_refused() {
    let with = |largest| load(&Layers { flags: vec![set("server.max_request", largest)], ..isolated() });
    assert_eq!(fields(&with("33 MiB").unwrap_err()), ["server.max_upload_memory"]);
    assert!(with("32 MiB").is_ok(), "an eighth of it");
}

#[test]
fn another_way_to_the_same_services_is_not_left_open() {
    for key in ["auth.generation_tokens", "auth.scoring_tokens"] {
        let flags = vec![set(key, "/tokens")];
        assert_eq!(fields(&load(&Layers { flags, ..isolated() }).unwrap_err()), ["auth.inference_tokens"]);
    }
    let flags = vec![set("auth.models_tokens", "/tokens"), set("auth.admin_tokens", "/tokens")];
    assert!(load(&Layers { flags, ..isolated() }).is_ok());
}

#[test]
fn half_of_tls_is_refused() {
    for (given, missing) in [
        (&["server.tls.certificate"][..], "server.tls.key"),
        (&["server.tls.key", "server.tls.client_ca"], "server.tls.certificate"),
        (&["server.tls.client_ca"], "server.tls.certificate"),
    ] {
        let flags = given.iter().map(|key| set(key, "/file.pem")).collect();
        assert_eq!(fields(&load(&Layers { flags, ..isolated() }).unwrap_err()), [missing], "{given:?}");
    }
}

#[test]
fn files_that_cannot_be_read_and_keys_that_are_none_are_named() {
    let missing = load(&Layers { file: Some("/no/such/file.toml".into()), ..isolated() }).unwrap_err();
    assert_eq!(fields(&missing), ["--config"]);
    let broken = file("[server\n");
    let violations = load(&Layers { file: Some(broken.path().to_owned()), ..isolated() }).unwrap_err();
    assert_eq!(fields(&violations), [broken.path().to_str().unwrap()]);
    let keyless = load(&Layers { flags: vec![set("", "1"), set("a b", "1")], ..isolated() }).unwrap_err();
    assert_eq!(fields(&keyless), ["--set", "--set"]);
}

#[test]
fn a_key_that_is_a_place_in_a_list_is_refused_before_the_list_is_made() {
    let layers = Layers {
        environment: environment(&[("PIXELD__ENGINE__SLOTS[9999999999]", "1")]),
        flags: vec![set("engine.slots[9999999999]", "1"), set("engine.slots[-9223372036854775808]", "1")],
        ..isolated()
    };
    assert_eq!(fields(&load(&layers).unwrap_err()), ["engine.slots[9999999999]", "--set", "--set"]);
}

#[test]
fn a_value_in_a_filter_of_the_log_is_no_regular_expression() {
    // Of 600 bytes of one, preparing it took 48 seconds.
    let filter = "pixeld[span{field=(}]=debug";
    let config = load(&Layers { flags: vec![set("log.filter", filter)], ..isolated() }).unwrap();
    assert_eq!(config.log.filter, filter);
}

#[test]
fn the_printed_configuration_reads_back_as_the_same() {
    let odd = Layers {
        flags: vec![
            set("server.max_request", "5000001"),
            set("server.drain_delay", "7s"),
            set("server.drain_timeout", "1m 3s 250ms"),
            set("server.max_connection_idle", "0s"),
            set("server.max_connection_age", "30m"),
            set("server.tls.certificate", "/c.pem"),
            set("server.tls.key", "/k.pem"),
            set("server.tls.client_ca", "/ca.pem"),
            set("auth.generation_tokens", "/g"),
            set("auth.inference_tokens", "/i"),
            set("auth.admin_tokens", "/a"),
            set("models.root", "/a \"quoted\" path"),
            set("log.filter", "info,pixeld[span{field=\"x\"}]=debug"),
            set("engine.score_share", "0.1"),
            set("engine.shards", "3"),
            set("engine.max_model_memory", "3 GiB"),
            set("admin.listen", "unix:/run/pixeld/admin.sock"),
            set("models.aliases.stable", "models/digits"),
            set("engine.slots", "5"),
        ],
        ..isolated()
    };
    for layers in [isolated(), odd] {
        let config = load(&layers).unwrap();
        let printed = file(&config.to_string());
        assert_eq!(load(&Layers { file: Some(printed.path().to_owned()), ..isolated() }), Ok(config));
    }
}

#[test]
fn shards_and_threads_are_a_matter_of_the_cores_unless_the_configuration_says_so() {
    let engine = |flags: &[Flag]| load(&Layers { flags: flags.to_vec(), ..isolated() }).unwrap().engine;
    let cores = machine::cores();
    assert_eq!(engine(&[]).shards(), cores.min(16));
    assert_eq!(engine(&[]).threads(), (cores / cores.min(16)).max(1));
    let one = set("engine.shards", "1");
    assert_eq!((engine(std::slice::from_ref(&one)).shards(), engine(&[one]).threads()), (1, cores));
    let many = engine(&[set("engine.shards", "1024")]);
    assert_eq!((many.shards(), many.threads()), (1024, 1));
    assert_eq!(engine(&[set("engine.threads", "3")]).threads(), 3);
}

/// What docs/CONFIGURATION.md must read: every setting with its default, its variable and what the example file says of it.
fn page() -> String {
    let mut page = "# Configuration\n\nEvery setting, as `deploy/config.example.toml` explains them; that file is compiled in as the lowest layer. Above it, \
                    later ones winning: the\nfile that `--config` names, the environment, flags (`--set section.key=value`). `pixeld check` prints what is in \
                    force. What is not listed here\nis refused, wherever it comes from.\n"
        .to_owned();
    let (mut section, mut words) = ("", Vec::new());
    for line in DEFAULTS.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            words.push(comment);
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            page.push_str(&format!(
                "\n## {name}\n\n| setting | default | environment | meaning |\n| :-- | :-- | :-- | :-- |\n"
            ));
        } else if let Some((key, value)) = line.split_once(" = ") {
            let variable = format!("PIXELD__{}__{}", section.replace('.', "__"), key).to_uppercase();
            // What is said of several settings stands above the first.
            let meaning = if words.is_empty() { "as above".to_owned() } else { words.join(" ").replace('|', "\\|") };
            words.clear();
            page.push_str(&format!("| `{section}.{key}` | `{value}` | `{variable}` | {meaning} |\n"));
        } else {
            words.clear();
        }
    }
    page
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever wants the page written says so there")]
fn the_list_of_settings_is_the_one_in_docs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIGURATION.md");
    let page = page();
    if std::env::var_os("PIXELD_WRITE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page,
        "docs/CONFIGURATION.md is not what PIXELD_WRITE_DOCS=1 makes of deploy/config.example.toml"
    );
    // Every section begins with words of its own.
    let rows = page.lines().zip(page.lines().skip(1));
    let first: Vec<_> = rows.filter(|(head, _)| head.starts_with("| :--")).map(|(_, row)| row).collect();
    assert!(first.iter().all(|row| !row.ends_with("| as above |")), "{first:?}");
}
