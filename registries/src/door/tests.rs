use std::collections::BTreeMap;

use axum::http::header::{AUTHORIZATION, LOCATION};

use super::*;
use crate::upstream::Credentials;

/// What a registry answers, by path.
type Answers = BTreeMap<&'static str, (u16, &'static str, String)>;

/// What a registry was asked for: by path, and with what credentials.
type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A registry of a test's, with everything that it was asked: path, and with what credentials.
struct Asked {
    url: String,
    seen: Seen,
}

impl Asked {
    async fn begin(answers: Answers) -> Self {
        let seen = Seen::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = (Arc::new(answers), seen.clone());
        let app = Router::new().fallback(answer_as_told).with_state(state);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<(String, Option<String>)> {
        self.seen.lock().expect("no panic").clone()
    }

    fn paths(&self) -> Vec<String> {
        self.seen().into_iter().map(|(path, _)| path).collect()
    }
}

type Told = (Arc<Answers>, Seen);

async fn answer_as_told(State((answers, seen)): State<Told>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let with = request.headers().get(AUTHORIZATION).and_then(|value| Some(value.to_str().ok()?.to_owned()));
    seen.lock().expect("no panic").push((path.clone(), with));
    match answers.get(path.as_str()) {
        None => StatusCode::NOT_FOUND.into_response(),
        Some((302, _, to)) => (StatusCode::FOUND, [(LOCATION, to.clone())]).into_response(),
        Some((status, kind, body)) => {
            let status = StatusCode::from_u16(*status).expect("a status");
            (status, [(CONTENT_TYPE, (*kind).to_owned())], body.clone()).into_response()
        }
    }
}

const HTML: &str = "text/html";
const JSON: &str = "application/json";

async fn door(registry: &Asked, kind: Kind, public: Option<&Asked>) -> Door {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let path = if kind == Kind::Simple { "/simple" } else { "" };
    let registry = Registry {
        kind,
        url: format!("{}{path}", registry.url),
        credentials: Some(Credentials::Bearer("hunter2".to_owned())),
        package: "acme".to_owned(),
        public: public.map(|public| format!("{}{path}", public.url)),
    };
    Door::open(&registry).await.expect("a door")
}

async fn get(url: &str) -> (u16, String) {
    let answer =
        reqwest::Client::builder().no_proxy().build().expect("a client").get(url).send().await.expect("answer");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

/// The place of the first file of a page.
fn first_href(page: &str) -> &str {
    page.split_once("href=\"").expect("a link").1.split_once('"').expect("its end").0
}

#[tokio::test]
async fn a_package_comes_with_credentials_that_only_the_registry_hears() {
    let elsewhere = Asked::begin(Answers::from([("/a.whl", (200, HTML, "wheel".to_owned()))])).await;
    let page = format!("<a href='{}/a.whl'>acme-1-py3-none-any.whl</a>", elsewhere.url);
    let registry = Asked::begin(Answers::from([("/simple/acme/", (200, HTML, page))])).await;
    let door = door(&registry, Kind::Simple, None).await;
    let (status, page) = get(&format!("{}/acme/", door.url())).await;
    assert_eq!(status, 200);
    assert!(!page.contains(&elsewhere.url) && !page.contains(&registry.url), "{page}");
    assert_eq!(get(first_href(&page)).await, (200, "wheel".to_owned()));
    let token = Some("Bearer hunter2".to_owned());
    assert_eq!(registry.seen(), [("/simple/acme/".to_owned(), token)]);
    assert_eq!(elsewhere.seen(), [("/a.whl".to_owned(), None)]);
    assert_eq!(get(&format!("{}.metadata", first_href(&page))).await.0, 404);
    assert_eq!(elsewhere.paths()[1], "/a.whl.metadata");
}

#[tokio::test]
async fn what_passes_a_name_on_does_not_have_it() {
    let public = Asked::begin(Answers::from([
        ("/simple/acme/", (200, HTML, "<a href='/evil.whl'>acme-9-py3-none-any.whl</a>".to_owned())),
        ("/simple/known/", (200, HTML, "<a href='/known.whl'>known-1-py3-none-any.whl</a>".to_owned())),
    ]))
    .await;
    let to = |name: &str| (302, HTML, format!("{}/simple/{name}/", public.url));
    let passes = [("/simple/acme/", to("acme")), ("/simple/known/", to("known"))];
    let registry = Asked::begin(Answers::from(passes)).await;
    let alone = door(&registry, Kind::Simple, None).await;
    for name in ["acme", "known"] {
        assert_eq!(get(&format!("{}/{name}/", alone.url())).await.0, 404, "{name}");
    }
    assert_eq!(public.paths(), [""; 0], "nobody else is asked");
    assert_eq!((alone.missing(), alone.trouble()), (vec!["acme".to_owned(), "known".to_owned()], None));
    let beside = door(&registry, Kind::Simple, Some(&public)).await;
    assert_eq!(get(&format!("{}/acme/", beside.url())).await.0, 404, "the package itself");
    let (status, page) = get(&format!("{}/known/", beside.url())).await;
    assert_eq!((status, page.contains("known-1-py3")), (200, true), "{page}");
    assert_eq!(public.paths(), ["/simple/known/"]);
    assert!(public.seen().iter().all(|(_, with)| with.is_none()));
}

#[tokio::test]
async fn a_redirection_at_home_is_followed() {
    let page = "<a href='/a.whl'>acme-1-py3-none-any.whl</a>".to_owned();
    let moved = (302, HTML, "/other/acme/".to_owned());
    let registry = Asked::begin(Answers::from([("/simple/acme/", moved), ("/other/acme/", (200, HTML, page))])).await;
    let door = door(&registry, Kind::Simple, None).await;
    assert_eq!(get(&format!("{}/acme/", door.url())).await.0, 200);
}

#[tokio::test]
async fn npm_is_told_of_tarballs_by_the_door_and_of_what_was_left_out() {
    let versions = serde_json::json!({
        "1.0.0": { "dist": { "tarball": "/acme-1.0.0.tgz" } },
        "2.0.0": { "dist": { "tarball": "/acme-2.0.0.tgz" }, "dependencies": { "x": "https://elsewhere/x.tgz" } },
    });
    let said = serde_json::json!({ "name": "acme", "versions": versions }).to_string();
    let tarball = (200, JSON, "tarball".to_owned());
    let registry = Asked::begin(Answers::from([("/acme", (200, JSON, said)), ("/acme-1.0.0.tgz", tarball)])).await;
    let public = Asked::begin(Answers::new()).await;
    let door = door(&registry, Kind::Npm, Some(&public)).await;
    let (_, told) = get(&format!("{}acme", door.url())).await;
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert!(told["versions"]["2.0.0"].is_null(), "{told}");
    let place = told["versions"]["1.0.0"]["dist"]["tarball"].as_str().expect("a place");
    assert_eq!(get(place).await, (200, "tarball".to_owned()));
    let words = "acme 2.0.0 was left out: it brings x from https://elsewhere/x.tgz, which is no registry";
    assert_eq!(door.left_out(), [words]);
    assert_eq!(get(&format!("{}@a%2fb", door.url())).await.0, 404);
    assert_eq!((door.missing(), public.paths()), (vec!["@a/b".to_owned()], vec!["/@a%2fb".to_owned()]));
}

#[tokio::test]
async fn nothing_else_is_answered_and_nobody_without_the_key() {
    let registry = Asked::begin(Answers::new()).await;
    let door = door(&registry, Kind::Simple, None).await;
    let origin = door.url().trim_end_matches("/simple");
    let other = format!("http://{}/{}/simple/acme/", door.inside.address, "0".repeat(32));
    let inside = ["/files/0/a.whl", "/files/x/a.whl", "/npm/acme", "/simple/..%2f/", "/simple/", "/"];
    let inside = inside.iter().map(|path| format!("{origin}{path}"));
    for url in inside.chain([other]) {
        assert_eq!(get(&url).await.0, 404, "{url}");
    }
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let posted = http.post(format!("{}/acme/", door.url())).send().await.expect("an answer");
    assert_eq!(posted.status().as_u16(), 405);
    assert_eq!(registry.paths(), [""; 0]);
}

#[tokio::test]
async fn what_went_wrong_is_told_until_it_comes_through_and_a_refusal_is_no_absence() {
    let registry = Asked::begin(Answers::from([
        ("/simple/acme/", (401, HTML, String::new())),
        ("/simple/busy/", (429, HTML, String::new())),
        ("/simple/other/", (200, JSON, "{}".to_owned())),
    ]))
    .await;
    let public = Asked::begin(Answers::from([("/simple/busy/", (200, HTML, String::new()))])).await;
    let door = door(&registry, Kind::Simple, Some(&public)).await;
    assert_eq!(get(&format!("{}/busy/", door.url())).await.0, 503, "it may have it");
    let Some(Error::Unreachable { why, .. }) = door.trouble() else { panic!("{:?}", door.trouble()) };
    assert_eq!(why, "it answers 429 Too Many Requests");
    assert_eq!(get(&format!("{}/acme/", door.url())).await.0, 401);
    assert_eq!(get(&format!("{}/other/", door.url())).await.0, 503);
    let troubles: Vec<Error> = door.inside.said().troubles.iter().map(|(_, error)| error.clone()).collect();
    assert!(matches!(troubles[1], Error::Refused { status: 401, with_credentials: true, .. }), "{troubles:?}");
    assert!(matches!(troubles[2], Error::NoRegistry { .. }), "{troubles:?}");
    assert_eq!(public.paths(), [""; 0]);
    assert_eq!(get(&format!("{}/busy/", door.url())).await.0, 503);
    assert_eq!(door.inside.said().troubles.len(), 3, "what is asked again is told once");
}

#[tokio::test]
async fn a_door_that_is_closed_answers_nobody_on_a_connection_that_stays() {
    let page = "<a href='/a.whl'>acme-1-py3-none-any.whl</a>".to_owned();
    let registry = Asked::begin(Answers::from([("/simple/acme/", (200, HTML, page))])).await;
    let door = door(&registry, Kind::Simple, None).await;
    let url = format!("{}/acme/", door.url());
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    assert_eq!(http.get(&url).send().await.expect("an answer").status().as_u16(), 200);
    drop(door);
    match http.get(&url).send().await {
        Ok(answer) => assert_eq!(answer.status().as_u16(), 503),
        Err(error) => assert!(error.is_connect() || error.is_request(), "{error}"),
    }
    assert_eq!(registry.paths().len(), 1);
}

#[tokio::test]
async fn programs_of_other_users_are_kept_out() {
    let page = "<a href='/a.whl'>acme-1-py3-none-any.whl</a>".to_owned();
    let registry = Asked::begin(Answers::from([("/simple/acme/", (200, HTML, page))])).await;
    let own = std::fs::read_to_string("/proc/self/status").expect("a status");
    let own = own.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse::<u32>().ok());
    let own = own.expect("a user");
    let own_door = door(&registry, Kind::Simple, None).await;
    own_door.only_for(own);
    assert_eq!(get(&format!("{}/acme/", own_door.url())).await.0, 200);
    if own != 0 {
        let others = door(&registry, Kind::Simple, None).await;
        others.only_for(own + 1);
        assert_eq!(get(&format!("{}/acme/", others.url())).await.0, 403);
        return;
    }
    // Root may come in everywhere, so here somebody else asks.
    let nobody = 65_534;
    for (user, wanted) in [(nobody, "200 OK"), (nobody - 1, "403 Forbidden")] {
        let door = door(&registry, Kind::Simple, None).await;
        door.only_for(user);
        let path = Url::parse(door.url()).expect("a URL").path().to_owned();
        let request = format!("GET {path}/acme/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        let port = door.inside.address.port();
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '%s' \"$1\" >&3; head -n 1 <&3");
        let mut ask = tokio::process::Command::new("bash");
        let said =
            ask.args(["-c", &script, "bash", &request]).uid(nobody).current_dir("/").output().await.expect("bash");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains(wanted), "{user}: {said}");
    }
}

#[test]
fn each_url_has_one_number_and_there_is_an_end_of_them() {
    let mut files = Files::default();
    let url = |n: usize| Url::parse(&format!("https://h/{n}/{}", "a".repeat(8_000))).expect("a URL");
    assert_eq!((files.number(&url(0)), files.number(&url(1)), files.number(&url(0))), (Some(0), Some(1), Some(0)));
    let most = FILE_URLS_BYTES_MAX / 8_000;
    assert!((2..most + 10).any(|n| files.number(&url(n)).is_none()));
    assert!(files.bytes <= FILE_URLS_BYTES_MAX);
}

#[tokio::test]
async fn what_clients_say_names_the_registry_and_not_the_door() {
    let registry = Asked::begin(Answers::new()).await;
    let door = door(&registry, Kind::Simple, None).await;
    let (address, key) = (door.inside.address, &door.inside.key);
    let said = format!(
        "{}/acme/ HTTPConnectionPool(host='127.0.0.1', port={}): with url: /{key}/simple/acme/ at {address}",
        door.url(),
        address.port()
    );
    let cleaned = door.cleaned(&said);
    assert!(!cleaned.contains(&address.to_string()) && !cleaned.contains(key.as_str()), "{cleaned}");
    assert!(cleaned.starts_with(&format!("{}/simple/acme/", registry.url)), "{cleaned}");
}
