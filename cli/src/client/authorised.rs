//! Puts the operator's token on each call, and once a newer one when the server refuses a token kept from before.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, Request, Response, header::AUTHORIZATION};
use http_body_util::{BodyExt as _, Full};
use keyfold_core::secret::SecretBytes;
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::{BoxError, Service, ServiceExt as _};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{credentials::Renewal, output};

/// The connection, with a token on each call.
#[derive(Clone)]
pub struct Authorised {
    /// The connection.
    pub channel: Channel,
    /// The token.
    pub bearer: Bearer,
    /// The plan whose approval goes with each call.
    pub approval: Option<Uuid>,
}

impl Service<Request<Body>> for Authorised {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::<Request<Body>>::poll_ready(&mut self.channel, context).map_err(BoxError::from)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // A UUID is plain ASCII, so it has a value.
        if let Some(plan) = self.approval
            && let Ok(value) = HeaderValue::from_str(&plan.to_string())
        {
            request.headers_mut().insert("keyfold-approval", value);
        }
        // The one that is ready, not its clone.
        let other = self.channel.clone();
        let channel = std::mem::replace(&mut self.channel, other);
        Box::pin(call(channel, self.bearer.clone(), request))
    }
}

async fn call(
    mut channel: Channel,
    bearer: Bearer,
    mut request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    if !bearer.is_renewable() {
        bearer.sign(request.headers_mut())?;
        return Ok(channel.call(request).await?);
    }
    // Requests are single messages, so the second try can send what the first did.
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let signed = || {
        let mut request = Request::from_parts(parts.clone(), Body::new(Full::new(body.clone())));
        bearer.sign(request.headers_mut()).map(|()| request)
    };
    let response = channel.call(signed()?).await?;
    if !is_unauthenticated(response.headers()) || !bearer.renew().await {
        return Ok(response);
    }
    Ok(channel.ready().await?.call(signed()?).await?)
}

/// A refusal has no message, so its status stands where the answer begins.
fn is_unauthenticated(headers: &HeaderMap) -> bool {
    Status::from_header_map(headers).is_some_and(|status| status.code() == Code::Unauthenticated)
}

/// The token of all calls of a client.
#[derive(Clone)]
pub struct Bearer(Arc<State>);

struct State {
    token: Mutex<Option<Arc<SecretBytes>>>,
    /// Taken by who uses it: once.
    renewal: Mutex<Option<Renewal>>,
    renewing: AtomicBool,
}

impl Bearer {
    /// No token.
    pub fn nobody() -> Self {
        Self::with(None, None)
    }

    /// This token, and how to get a newer one.
    pub fn of(token: Arc<SecretBytes>, renewal: Option<Renewal>) -> Self {
        Self::with(Some(token), renewal)
    }

    fn with(token: Option<Arc<SecretBytes>>, renewal: Option<Renewal>) -> Self {
        let renewing = AtomicBool::new(false);
        Self(Arc::new(State { token: Mutex::new(token), renewal: Mutex::new(renewal), renewing }))
    }

    /// Whether a newer token is being fetched.
    pub fn is_renewing(&self) -> bool {
        self.0.renewing.load(Ordering::Relaxed)
    }

    fn is_renewable(&self) -> bool {
        self.0.renewal.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Puts the token on a call.
    fn sign(&self, headers: &mut HeaderMap) -> Result<(), Status> {
        let token = self.0.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(token) = token else { return Ok(()) };
        let text = Zeroizing::new([b"Bearer ", token.expose()].concat());
        let mut value = HeaderValue::from_bytes(&text)
            .map_err(|_| Status::unauthenticated("the token holds characters that cannot be sent"))?;
        // Keeps it out of HTTP/2's compression table and out of debug output.
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok(())
    }

    /// Gets a newer token. Says whether there is one that was not refused yet.
    async fn renew(&self) -> bool {
        let renewal = self.0.renewal.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(renewal) = renewal else { return false };
        self.0.renewing.store(true, Ordering::Relaxed);
        let renewed = tokio::task::spawn_blocking(move || renewal.run()).await;
        self.0.renewing.store(false, Ordering::Relaxed);
        match renewed {
            Ok(Ok(token)) => self.replace(token),
            Ok(Err(failure)) => {
                output::note(&format!("the kept token is refused, and there is no newer one: {failure}"));
                false
            }
            Err(_) => false,
        }
    }

    fn replace(&self, token: SecretBytes) -> bool {
        let mut place = self.0.token.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = place.as_ref().is_none_or(|refused| **refused != token);
        *place = Some(Arc::new(token));
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_14_the_token_goes_out_as_a_sensitive_bearer() {
        let mut headers = HeaderMap::new();
        Bearer::of(Arc::new(SecretBytes::new(b"abc".to_vec())), None).sign(&mut headers).unwrap();
        let value = headers.get(AUTHORIZATION).unwrap();
        assert_eq!(value.as_bytes(), b"Bearer abc");
        assert!(value.is_sensitive());
        assert!(!format!("{headers:?}").contains("abc"));
    }

    #[test]
    fn without_a_token_nothing_goes_out() {
        let mut headers = HeaderMap::new();
        Bearer::nobody().sign(&mut headers).unwrap();
        assert!(headers.is_empty());
    }

    #[test]
    fn the_same_token_again_is_not_tried_again() {
        let token = |text: &str| SecretBytes::from(text.to_owned());
        let bearer = Bearer::of(Arc::new(token("old")), None);
        assert!(!bearer.replace(token("old")));
        assert!(bearer.replace(token("new")));
    }
}
