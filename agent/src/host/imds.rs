//! In: instance metadata (IMDSv2; `AWS_EC2_METADATA_SERVICE_ENDPOINT` names another endpoint). Out: which instance this is.
//! Never: IMDSv1, a wait of more than some seconds. Spec: Amazon EC2 User Guide "Instance metadata categories".

use std::error::Error as StdError;
use std::time::Duration;

use aws_config::imds::Client;

/// One attempt; on an instance the service answers within milliseconds, elsewhere nobody does.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 2;

/// Which instance this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// `i-…`.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Its availability zone.
    pub az: String,
}

/// The instance metadata did not say it.
#[derive(thiserror::Error, Debug)]
#[error(
    "cannot read {path} of the instance metadata (IMDSv2): {cause}; is this an EC2 instance, is its metadata service enabled, and, in a container, \
     is the hop limit at least 2? Otherwise set instance.id, instance.region and instance.az"
)]
pub struct Error {
    /// What was asked for.
    pub path: &'static str,
    /// Why there was no answer.
    pub cause: String,
}

/// Asks the instance metadata which instance this is.
///
/// # Errors
/// When there is none, or it does not answer in time.
pub async fn instance() -> Result<Instance, Error> {
    ask(builder().build()).await
}

fn builder() -> aws_config::imds::client::Builder {
    let builder = Client::builder().max_attempts(ATTEMPTS).connect_timeout(ATTEMPT_TIMEOUT).read_timeout(ATTEMPT_TIMEOUT);
    builder.operation_attempt_timeout(ATTEMPT_TIMEOUT)
}

async fn ask(client: Client) -> Result<Instance, Error> {
    let get = async |path: &'static str| match client.get(path).await {
        Ok(text) => Ok(text.as_ref().trim().to_owned()),
        Err(error) => Err(Error { path, cause: chain(&error) }),
    };
    Ok(Instance {
        id: get("/latest/meta-data/instance-id").await?,
        region: get("/latest/meta-data/placement/region").await?,
        az: get("/latest/meta-data/placement/availability-zone").await?,
    })
}

/// The error and what it stems from, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, put};
    use tokio::net::TcpListener;

    async fn serve(router: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        endpoint
    }

    fn with_token(text: &'static str) -> axum::routing::MethodRouter {
        get(move |headers: HeaderMap| async move {
            let allowed = headers.get("x-aws-ec2-metadata-token").is_some_and(|token| token == "T");
            if allowed { (StatusCode::OK, text) } else { (StatusCode::UNAUTHORIZED, "") }
        })
    }

    #[tokio::test]
    async fn the_instance_is_told_to_who_brings_a_token() {
        let router = Router::new()
            .route("/latest/api/token", put(|| async { ([("x-aws-ec2-metadata-token-ttl-seconds", "21600")], "T") }))
            .route("/latest/meta-data/instance-id", with_token("i-0abc\n"))
            .route("/latest/meta-data/placement/region", with_token("eu-north-1"))
            .route("/latest/meta-data/placement/availability-zone", with_token("eu-north-1b"));
        let client = builder().endpoint(serve(router).await).unwrap().build();
        let instance = ask(client).await.unwrap();
        assert_eq!((instance.id.as_str(), instance.region.as_str(), instance.az.as_str()), ("i-0abc", "eu-north-1", "eu-north-1b"));
    }

    #[tokio::test]
    async fn without_metadata_the_error_comes_soon_and_says_what_to_set() {
        let begun = std::time::Instant::now();
        let client = builder().endpoint("http://127.0.0.1:1").unwrap().build();
        let error = ask(client).await.unwrap_err().to_string();
        assert!(error.contains("instance-id") && error.contains("instance.id"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
