//! Gates that Prometheus answers.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_rustls::builderstates::WantsSchemes;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use podshm_api::rollout::{QueryGate, Verdict, VerdictResult};
use podshm_rollout::BadQuery;
use serde_json::Value;
use std::time::Duration;

/// How long an answer may take, all of it.
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

    async fn json(&self, url: &str) -> Result<Value, Why> {
        let away = |error: anyhow::Error| Why::Away(format!("the server does not answer: {error:#}"));
        let response = self.get(url).await.map_err(away)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST).collect();
        let body = body.await.map_err(|error| away(anyhow::anyhow!("{error}")))?.to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body).chars().take(200).collect::<String>();
            let said = format!("the server answers {status}: {text}");
            // It is the query that is wrong, or who asks. Others come and go.
            let is_ours = status.is_client_error() && status != hyper::StatusCode::TOO_MANY_REQUESTS;
            return Err(if is_ours { Why::Answer(said) } else { Why::Away(said) });
        }
        serde_json::from_slice(&body).map_err(|error| Why::Answer(format!("the answer is no JSON: {error}")))
    }

    async fn found(&self, gate: &QueryGate) -> Result<f64, Why> {
        let url = format!("{}/api/v1/query?query={}", gate.url.trim_end_matches('/'), encoded(&gate.query));
        let late = |_| Err(Why::Away(format!("the server does not answer within {} s", PATIENCE.as_secs())));
        let answer = tokio::time::timeout(PATIENCE, self.json(&url)).await.unwrap_or_else(late)?;
        number(&answer).map_err(Why::Answer)
    }

    /// What a query gate says.
    async fn query(&self, gate: &QueryGate) -> Verdict {
        judge(gate, self.found(gate).await)
    }

    /// What query gates say, asked at once: all of them together take no longer than the slowest may.
    pub async fn queries(&self, gates: &[QueryGate]) -> Vec<Verdict> {
        futures::future::join_all(gates.iter().map(|gate| self.query(gate))).await
    }

    /// What is wrong with query gates before anything is touched, asked once; a server that can't be reached is wrong, too.
    pub async fn look_at(&self, gates: &[QueryGate]) -> Vec<BadQuery> {
        let all = gates.iter().map(|gate| self.bad(gate));
        futures::future::join_all(all).await.into_iter().flatten().collect()
    }

    async fn bad(&self, gate: &QueryGate) -> Option<BadQuery> {
        let message = match self.found(gate).await {
            Err(why) => why.to_string(),
            Ok(found) => match judge(gate, Ok(found)) {
                Verdict { result: VerdictResult::Passed, .. } => return None,
                Verdict { message, .. } => format!("as it is now, before anything is touched: {message}"),
            },
        };
        Some(BadQuery { gate: gate.name.clone(), message })
    }
}

/// Why there is no number.
#[derive(Debug)]
enum Why {
    /// Nobody answers, or nobody who can at the moment.
    Away(String),
    /// What comes is no number.
    Answer(String),
}

impl std::fmt::Display for Why {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Why::Away(text) | Why::Answer(text)) = self;
        out.write_str(text)
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

fn judge(gate: &QueryGate, found: Result<f64, Why>) -> Verdict {
    let limits = match (gate.min, gate.max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("{min} or more"),
        (None, Some(max)) => format!("{max} or less"),
        (None, None) => "anything".into(),
    };
    let (result, message) = match found {
        // No number is no verdict: a server that is away for a moment stops nothing, and the batch does not pass without one.
        Err(why) => (VerdictResult::Waiting, why.to_string()),
        Ok(found) => {
            let is_well = gate.min.is_none_or(|min| found >= min) && gate.max.is_none_or(|max| found <= max);
            let result = if is_well { VerdictResult::Passed } else { VerdictResult::Failed };
            (result, format!("found {found}, expected {limits}"))
        }
    };
    Verdict { gate: gate.name.clone(), result, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
            let verdict = judge(&gate(min, max), number(&answer).map_err(Why::Answer));
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

    /// A server that answers each request with a body, as many times as it is asked; one without a body takes connections and says nothing.
    fn server(body: Option<(&'static str, &'static str)>) -> String {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if let Some((status, body)) = body {
                    let _ = stream.read(&mut [0; 4096]).unwrap();
                    let length = body.len();
                    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
                        .unwrap();
                } else {
                    held.push(stream);
                }
            }
        });
        format!("http://{address}")
    }

    fn in_a_runtime<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(work)
    }

    #[test]
    fn a_query_that_errs_finds_nothing_or_is_over_its_limit_is_told_of_before_anything_is_touched() {
        let bad = ("400 Bad Request", r#"{"status":"error","error":"parse error"}"#);
        let empty = ("200 OK", r#"{"data":{"resultType":"vector","result":[]}}"#);
        let half = ("200 OK", r#"{"data":{"resultType":"scalar","result":[0,"0.5"]}}"#);
        let nobody = "http://127.0.0.1:1".to_owned();
        let rows = [
            (server(Some(half)), 1.0, None),
            (server(Some(half)), 0.1, Some("found 0.5, expected 0.1 or less")),
            (server(Some(bad)), 1.0, Some("parse error")),
            (server(Some(empty)), 1.0, Some("the query has 0 results")),
            (nobody, 1.0, Some("the server does not answer")),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (url, max, expected) in rows {
            let gates = [QueryGate { url: url.clone(), ..gate(None, Some(max)) }];
            let found = runtime.block_on(Asker::with(Err(std::io::Error::other("none"))).look_at(&gates));
            match (found.first(), expected) {
                (None, None) => {}
                (Some(one), Some(says)) => assert!(one.message.contains(says), "{url}: {}", one.message),
                other => panic!("{url}: {other:?}"),
            }
        }
    }

    /// Time goes on by itself where everybody waits for it: what is counted is how often patience ends, not how long that takes.
    #[test]
    fn servers_that_swallow_everything_take_one_patience_and_not_one_each() {
        let gates: Vec<QueryGate> = (0..4).map(|_| QueryGate { url: server(None), ..gate(None, Some(1.0)) }).collect();
        let (verdicts, took) = in_a_runtime(async {
            let begin = tokio::time::Instant::now();
            let verdicts = Asker::with(Err(std::io::Error::other("none"))).queries(&gates).await;
            (verdicts, begin.elapsed())
        });
        assert!(verdicts.iter().all(|one| one.message.contains("does not answer within 10 s")), "{verdicts:?}");
        assert!(took < PATIENCE * 2, "{took:?} of the runtime's own time");
    }

    #[test]
    fn a_query_is_sent_as_one_parameter() {
        assert_eq!(encoded("sum(rate(x{a=\"b\"}[1m]))&c"), "sum%28rate%28x%7Ba%3D%22b%22%7D%5B1m%5D%29%29%26c");
    }
}
