//! In: settings that hold. Out: what this machine is advised to change for them, as comments behind them: the whole stays TOML.
//! Never: an exit code; advice is none to refuse.

use tapfleet::capture::{EngineKind, interface};
use tapfleet::config::Settings;
use tapfleet::host::advice::{self, Asked};

/// One line for each advice; empty when there is none.
pub fn advice(settings: &Settings) -> String {
    if settings.capture.engine == EngineKind::File {
        return String::new();
    }
    let lines = match interface::resolve(&settings.capture.interface) {
        Ok(interface) => advice_for(settings, &interface),
        Err(cause) => vec![cause.to_string()],
    };
    lines.iter().map(|line| format!("# advice for this machine: {line}\n")).collect()
}

fn advice_for(settings: &Settings, interface: &str) -> Vec<String> {
    advice::advice(Asked {
        interface,
        threads: settings.capture.threads,
        ring_bytes: settings.capture.ring_bytes,
        spool: &settings.spool.dir,
        spool_max_bytes: settings.spool.max_bytes,
    })
}
