//! Gates that somebody else answers: Prometheus, Jobs.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_rustls::builderstates::WantsSchemes;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use podshm_api::rollout::{AgentRollout, JobGate, MADE_BY, QueryGate, Verdict, VerdictResult};
use serde_json::{Value, json};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What an answer may have, in bytes.
const MOST: usize = 4 << 20;

/// Asks Prometheus, by HTTP, or by HTTPS with the certificates that there are here.
#[derive(Clone)]
pub(super) struct Asker {
    http: Http<HttpConnector, Empty<Bytes>>,
    /// An error where there are no certificates, as in an image with one program in it: why.
    https: Result<Http<HttpsConnector<HttpConnector>, Empty<Bytes>>, String>,
}

impl Asker {
    /// With the machine's own certificates. Where there are none, it is https that can't be asked.
    pub fn new() -> Self {
        Asker::with(hyper_rustls::HttpsConnectorBuilder::new().with_native_roots())
    }

    fn with(builder: std::io::Result<hyper_rustls::HttpsConnectorBuilder<WantsSchemes>>) -> Self {
        let build = |builder: hyper_rustls::HttpsConnectorBuilder<WantsSchemes>| {
            Http::builder(TokioExecutor::new()).build(builder.https_only().enable_http1().build())
        };
        Asker {
            http: Http::builder(TokioExecutor::new()).build_http(),
            https: builder.map(build).map_err(|error| error.to_string()),
        }
    }

    async fn get(&self, url: &str) -> anyhow::Result<hyper::Response<hyper::body::Incoming>> {
        let request = hyper::Request::get(url).body(Empty::new())?;
        if request.uri().scheme_str() != Some("https") {
            return Ok(self.http.request(request).await?);
        }
        match &self.https {
            Ok(https) => Ok(https.request(request).await?),
            Err(why) => anyhow::bail!(
                "https can't be asked: {why}; give the chart rollouts.caConfigMap, a ConfigMap with the authorities' certificates (elsewhere: a file that SSL_CERT_FILE names), or use http"
            ),
        }
    }

    async fn json(&self, url: &str) -> anyhow::Result<Value> {
        let response = tokio::time::timeout(PATIENCE, self.get(url)).await??;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST).collect();
        let body = tokio::time::timeout(PATIENCE, body).await?.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        let text = || String::from_utf8_lossy(&body).chars().take(200).collect::<String>();
        anyhow::ensure!(status.is_success(), "{status}: {}", text());
        Ok(serde_json::from_slice(&body)?)
    }

    /// What a query gate says.
    pub async fn query(&self, gate: &QueryGate) -> Verdict {
        let url = format!("{}/api/v1/query?query={}", gate.url.trim_end_matches('/'), encoded(&gate.query));
        let found = match self.json(&url).await {
            Ok(answer) => number(&answer),
            Err(error) => Err(format!("the server does not answer: {error:#}")),
        };
        judge(gate, found)
    }
}

/// Letters, digits and a few more as they are.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The one number of an answer.
fn number(answer: &Value) -> Result<f64, String> {
    let result = &answer["data"]["result"];
    let value = match answer["data"]["resultType"].as_str() {
        Some("scalar") => &result[1],
        Some("vector") => match result.as_array().map(Vec::as_slice) {
            Some([one]) => &one["value"][1],
            Some(other) => {
                return Err(format!(
                    "the query has {} results; expected one number (use sum(…), or max(…))",
                    other.len()
                ));
            }
            None => return Err("the answer has no result".into()),
        },
        _ => return Err(format!("expected a scalar or a vector, found {}", answer["data"]["resultType"])),
    };
    let text = value.as_str().unwrap_or_default();
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| format!("its result is {text:?}, which is no number"))
}

fn judge(gate: &QueryGate, found: Result<f64, String>) -> Verdict {
    let limits = match (gate.min, gate.max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("{min} or more"),
        (None, Some(max)) => format!("{max} or less"),
        (None, None) => "anything".into(),
    };
    let (result, message) = match found {
        // No number is no verdict: a server that is away for a moment stops nothing, and the batch does not pass without one.
        Err(why) => (VerdictResult::Waiting, why),
        Ok(found) => {
            let is_well = gate.min.is_none_or(|min| found >= min) && gate.max.is_none_or(|max| found <= max);
            let result = if is_well { VerdictResult::Passed } else { VerdictResult::Failed };
            (result, format!("found {found}, expected {limits}"))
        }
    };
    Verdict { gate: gate.name.clone(), result, message }
}

/// What a Job gate says; the Job is made once a batch's nodes are all converted.
pub(super) async fn job(client: &Client, rollout: &AgentRollout, gate: &JobGate) -> Verdict {
    let status = rollout.status.clone().unwrap_or_default();
    let verdict = |result, message: String| Verdict { gate: gate.name.clone(), result, message };
    if status.soaking_since == 0 {
        return verdict(VerdictResult::Waiting, "runs once the batch is converted".into());
    }
    // After a failure that somebody has looked at, another one.
    let name = format!("{}-{}-{}-{}", rollout.name_any(), status.batch, status.failures, gate.name);
    let jobs = Api::<Job>::namespaced(client.clone(), &gate.namespace);
    let found = match jobs.get_opt(&name).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let object = json!({
                "metadata": {
                    "name": name, "namespace": gate.namespace, "labels": {MADE_BY: rollout.name_any()},
                    "ownerReferences": rollout.owner_ref(&()).map(|owner| vec![owner]).unwrap_or_default(),
                },
                "spec": gate.spec,
            });
            let made = match serde_json::from_value::<Job>(object) {
                Ok(job) => jobs.create(&PostParams::default(), &job).await.map(drop).map_err(|error| error.to_string()),
                Err(error) => Err(format!("its spec is no Job's: {error}")),
            };
            return match made {
                Ok(()) => verdict(VerdictResult::Waiting, format!("Job {}/{name} begins", gate.namespace)),
                Err(error) => {
                    verdict(VerdictResult::Failed, format!("Job {}/{name} can't be created: {error}", gate.namespace))
                }
            };
        }
        Err(error) => return verdict(VerdictResult::Waiting, error.to_string()),
    };
    let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
    let is = |what: &str| conditions.iter().find(|one| one.type_ == what && one.status == "True");
    match (is("Complete"), is("Failed")) {
        (Some(_), _) => verdict(VerdictResult::Passed, format!("Job {}/{name} succeeded", gate.namespace)),
        (_, Some(why)) => {
            let why = why.message.clone().unwrap_or_default();
            verdict(VerdictResult::Failed, format!("Job {}/{name} failed: {why}", gate.namespace))
        }
        _ => verdict(VerdictResult::Waiting, format!("Job {}/{name} runs", gate.namespace)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(min: Option<f64>, max: Option<f64>) -> QueryGate {
        QueryGate { name: "errors".into(), url: "http://p".into(), query: "q".into(), max, min }
    }

    #[test]
    fn a_query_passes_fails_or_waits_by_its_one_number() {
        let vector = |values: &[&str]| {
            let all: Vec<Value> = values.iter().map(|value| json!({"metric": {}, "value": [1, value]})).collect();
            json!({"status": "success", "data": {"resultType": "vector", "result": all}})
        };
        let scalar = json!({"status": "success", "data": {"resultType": "scalar", "result": [1, "0.5"]}});
        for (answer, min, max, expected) in [
            (vector(&["0.01"]), None, Some(0.05), VerdictResult::Passed),
            (vector(&["0.06"]), None, Some(0.05), VerdictResult::Failed),
            (scalar.clone(), Some(0.4), Some(0.6), VerdictResult::Passed),
            (scalar, Some(0.6), None, VerdictResult::Failed),
            (vector(&[]), None, Some(1.0), VerdictResult::Waiting),
            (vector(&["1", "2"]), None, Some(5.0), VerdictResult::Waiting),
            (vector(&["NaN"]), None, Some(5.0), VerdictResult::Waiting),
            (json!({"status": "error"}), None, Some(5.0), VerdictResult::Waiting),
        ] {
            let verdict = judge(&gate(min, max), number(&answer));
            assert_eq!(verdict.result, expected, "{answer}: {verdict:?}");
        }
    }

    /// The controller's image has one program in it, and nothing else.
    #[test]
    fn where_there_are_no_certificates_http_is_asked_and_https_says_what_is_missing() {
        use std::io::{Read, Write};
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let body = r#"{"data":{"resultType":"scalar","result":[0,"0.5"]}}"#;
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (plain, secure) = runtime.block_on(async {
            let asker = Asker::with(Err(std::io::Error::other("no certificates found")));
            let at = |scheme: &str| QueryGate { url: format!("{scheme}://{address}"), ..gate(None, Some(1.0)) };
            (asker.query(&at("http")).await, asker.query(&at("https")).await)
        });
        answers.join().unwrap();
        assert_eq!((plain.result, secure.result), (VerdictResult::Passed, VerdictResult::Waiting), "{plain:?}");
        assert!(secure.message.contains("SSL_CERT_FILE"), "{secure:?}");
    }

    #[test]
    fn a_query_is_sent_as_one_parameter() {
        assert_eq!(encoded("sum(rate(x{a=\"b\"}[1m]))&c"), "sum%28rate%28x%7Ba%3D%22b%22%7D%5B1m%5D%29%29%26c");
    }
}
