//! Logs and metrics. Neither ever holds a value, a token or a key: the types that carry those cannot be formatted.

use metrics_exporter_prometheus::PrometheusBuilder;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat, Metrics};

/// Sends log events to standard error.
///
/// # Errors
/// When `log.level` is neither a level nor a list of directives.
pub fn init_log(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| format!("log.level: {error}"))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

/// Serves Prometheus metrics, from within the runtime.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve_metrics(metrics: &Metrics) -> Result<(), String> {
    PrometheusBuilder::new()
        .with_http_listener(metrics.listen)
        .install()
        .map_err(|error| format!("metrics.listen {}: {error}", metrics.listen))
}
