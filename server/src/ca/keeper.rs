//! Keeps what new connections are served up to date: the files, the internal authority's certificate, and whose
//! certificates clients may show.

use std::{sync::Arc, time::Duration};

use crate::{broker::Broker, ca::ServerCertificate, config::InternalTls, error::Error, listener::ServingTls};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Never ends.
pub async fn keep(broker: Arc<Broker>, tls: Arc<ServingTls>, internal: Option<InternalTls>) {
    let mut keeper = Keeper { broker, tls, internal, served: None, told: None };
    loop {
        keeper.look().await;
        tokio::time::sleep(INTERVAL).await;
    }
}

struct Keeper {
    broker: Arc<Broker>,
    tls: Arc<ServingTls>,
    /// By what clients call the server, if it is to serve a certificate of the internal authority.
    internal: Option<InternalTls>,
    served: Option<Arc<ServerCertificate>>,
    /// The last failure that was logged: the same is not said again.
    told: Option<String>,
}

impl Keeper {
    async fn look(&mut self) {
        match self.tls.read_files() {
            Ok(true) => tracing::info!("the certificate files were read anew"),
            Ok(false) => {}
            Err(why) => {
                tracing::error!(%why, "the certificate files cannot be used: what was read before is served")
            }
        }
        let failure = match self.look_at_authorities().await {
            Ok(()) => None,
            // The server says so itself.
            Err(Error::Sealed(_) | Error::NotInitialized) => None,
            Err(error @ (Error::Corrupt(_) | Error::Integrity { .. })) => Some(format!("{error:?}")),
            Err(error) => Some(error.to_string()),
        };
        if let (Some(why), true) = (&failure, failure != self.told) {
            tracing::error!(%why, "the internal authority cannot be used");
        }
        self.told = failure;
        self.forget_expired();
    }

    async fn look_at_authorities(&mut self) -> Result<(), Error> {
        self.broker.ca_look().await?;
        let bundle = self.broker.authorities.bundle();
        let authorities = bundle.authorities.iter().map(|authority| authority.certificate.clone()).collect();
        self.tls.trust(authorities).map_err(Error::Corrupt)?;
        let Some(names) = &self.internal else { return Ok(()) };
        let now = self.broker.now();
        let stands = self.served.as_ref().is_some_and(|served| {
            served.renew_at > now && Some(served.authority_version) == bundle.active_version()
        });
        if stands {
            return Ok(());
        }
        let certificate = Arc::new(self.broker.server_certificate(names).await?);
        self.tls.serve(Some(Arc::clone(&certificate))).map_err(Error::Corrupt)?;
        tracing::info!(
            authority = certificate.authority_version,
            expires_at = %certificate.expires_at,
            "serving a certificate of the internal authority"
        );
        self.served = Some(certificate);
        Ok(())
    }

    /// Where no other could be had in time, clients that trust the files' certificate can call at least.
    fn forget_expired(&mut self) {
        let now = self.broker.now();
        if self.served.take_if(|served| served.expires_at <= now).is_some() {
            tracing::error!(
                "the certificate of the internal authority has expired: that of the files is served"
            );
            let _ = self.tls.serve(None);
        }
    }
}
