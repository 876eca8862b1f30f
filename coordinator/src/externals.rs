//! Asking endpoints outside the fleet whether they answer.

use std::time::Duration;

use fleetwright_deploy::deployment::no_answer;
use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::plan::{EXTERNAL_TIMEOUT_MAX, External, ExternalEndpoint};
use reqwest::Client;
use reqwest::redirect::Policy;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Asks once, as the coordinator reaches it.
pub(crate) async fn ask(external: &External) -> Result<(), Failure> {
    let patience = Duration::from(external.timeout.min(EXTERNAL_TIMEOUT_MAX));
    let asked = async {
        match &external.endpoint {
            ExternalEndpoint::Tcp { address } => {
                TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
            }
            ExternalEndpoint::Http { url, statuses } => get(url, statuses).await,
        }
    };
    let answer = timeout(patience, asked).await.unwrap_or_else(|_| Err(format!("nothing within {}", external.timeout)));
    answer.map_err(|why| no_answer(external, &why))
}

/// The body of the answer is not read, and redirections are answers like others.
async fn get(url: &str, statuses: &[u16]) -> Result<(), String> {
    let client = || Client::builder().no_proxy().redirect(Policy::none());
    // Without certificates of authorities nobody is trusted, and plain HTTP can be asked all the same.
    let client =
        client().build().or_else(|_| client().tls_certs_only([]).build()).map_err(|error| error.to_string())?;
    let response = client.get(url).send().await.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    let status = response.status().as_u16();
    if statuses.contains(&status) { Ok(()) } else { Err(format!("it answers {status}, not {}", words(statuses))) }
}

fn words(statuses: &[u16]) -> String {
    statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ")
}
