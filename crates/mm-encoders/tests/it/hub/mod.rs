//! A hub that answers well, badly or not at all; each load is whole, or an error that leaves nothing behind.

mod server;

use crate::weights::{file, filled, says, values};
use mm_encoders::weights::{HubConfig, Matching, Source, Weights, WeightsError};
use server::{COMMIT, REPO, Reply, Repo, Request, Server, git, sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Tensors `a` of [1, 2] and `b` of [3].
fn model() -> Vec<u8> {
    file(&[("a", &[2], &[1.0, 2.0]), ("b", &[1], &[3.0])])
}

fn repo() -> Repo {
    Repo::default().with("model.safetensors", model()).with("config.json", br#"{"hidden": 8}"#.as_slice())
}

fn config(server: &Server, cache: &Path) -> HubConfig {
    HubConfig {
        endpoint: server.endpoint(),
        token: None,
        cache: cache.to_owned(),
        offline: false,
        patience: Duration::from_secs(5),
    }
}

fn load(config: &HubConfig, revision: &str) -> Result<Weights, WeightsError> {
    Weights::from_hub_with(REPO, revision, config)
}

/// The values of `a` and `b`.
fn check(weights: &Weights) {
    let store = filled(&[("part.a", 2), ("part.b", 1)]);
    weights.load_into(&store, "part", |n| Some(n.to_owned()), Matching::Strict).unwrap();
    assert_eq!(values(&store, "part.a"), [1.0, 2.0]);
    assert_eq!(values(&store, "part.b"), [3.0]);
    assert_eq!(weights.commit(), Some(COMMIT));
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("models--team--encoder")
}

/// Names of the blobs; whatever else lies about in the folder of the repository is counted too.
fn left_behind(cache: &Path) -> Vec<String> {
    let names = |dir: &Path| {
        std::fs::read_dir(dir).map_or_else(
            |_| Vec::new(),
            |all| all.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect(),
        )
    };
    let mut all = names(&folder(cache).join("blobs"));
    all.extend(names(&folder(cache)).into_iter().filter(|n| n.starts_with(".tmp")));
    all.sort();
    all
}

#[test]
fn a_checkpoint_is_fetched_once_and_then_comes_from_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|r| repo().reply(r));
    let online = config(&server, cache.path());
    let weights = load(&online, "main").unwrap();
    check(&weights);
    assert_eq!(weights.config().unwrap()["hidden"], 8);
    assert_eq!(weights.preprocessor_config().unwrap(), None);
    let (repo, revision) = (REPO.to_owned(), "main".to_owned());
    assert_eq!(weights.source(), &Source::Hub { repo, revision, commit: COMMIT.to_owned() });
    let gets = |log: Vec<String>| log.into_iter().filter(|line| line.starts_with("GET")).collect::<Vec<_>>();
    assert_eq!(
        gets(server.log()),
        [
            format!("GET /{REPO}/resolve/{COMMIT}/model.safetensors"),
            format!("GET /store/{}", sha256(&model())),
            format!("GET /{REPO}/resolve/{COMMIT}/config.json"),
        ]
    );
    assert_eq!(left_behind(cache.path()).len(), 2);

    // A branch costs one question, a commit none.
    let before = server.log().len();
    check(&load(&online, "main").unwrap());
    assert_eq!(server.log()[before..], [format!("HEAD /{REPO}/resolve/main/model.safetensors")]);
    check(&load(&online, COMMIT).unwrap());
    assert_eq!(server.log().len(), before + 1);

    drop(server);
    check(&load(&online, "main").unwrap());
    check(&load(&online, COMMIT).unwrap());
    check(&load(&HubConfig { offline: true, ..online.clone() }, "main").unwrap());
    let other = "f".repeat(40);
    says(
        &load(&online, &other).unwrap_err(),
        &["does not answer", &other, "does not have it", "check the network"],
    );

    // What Python's library makes of it: the folder of a snapshot, whose links lead to the blobs.
    let snapshot = folder(cache.path()).join("snapshots").join(COMMIT);
    assert_eq!(Weights::from_dir(snapshot).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn offline_nothing_is_asked() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|r| repo().reply(r));
    let online = config(&server, cache.path());
    let offline = HubConfig { offline: true, ..online.clone() };
    let error = load(&offline, "main").unwrap_err();
    says(&error, &[REPO, "`main`", "in the cache", "offline", "HF_HUB_OFFLINE"]);
    assert_eq!(server.log().len(), 0);
    load(&online, COMMIT).unwrap();
    let asked = server.log().len();
    check(&load(&offline, COMMIT).unwrap());
    // The branch was never asked for.
    says(&load(&offline, "main").unwrap_err(), &["offline"]);
    assert_eq!(server.log().len(), asked);
}

#[test]
fn what_does_not_exist_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|r| repo().reply(r));
    let online = config(&server, cache.path());
    says(&load(&online, "v9").unwrap_err(), &[REPO, "`v9`", "no such revision", "check the branch"]);
    let error = Weights::from_hub_with("team/other", "main", &online).unwrap_err();
    says(&error, &["team/other", "no such repository", "HF_TOKEN"]);
    assert_eq!(left_behind(cache.path()).len(), 0);

    let bare = Server::start(|_| Reply::new(404, &[], b""));
    let error = load(&config(&bare, cache.path()), "main").unwrap_err();
    says(&error, &["model.safetensors", "do not exist", "check the names"]);
    let pickled = Server::start(|r| Repo::default().with("pytorch_model.bin", b"PK".as_slice()).reply(r));
    let error = load(&config(&pickled, cache.path()), "main").unwrap_err();
    says(&error, &["pytorch_model.bin", "pickle", "python -c", "weights_only=True"]);
    assert!(pickled.log().iter().all(|line| line.starts_with("HEAD")));

    for (repo, revision, word) in [
        ("../x", "main", "repository"),
        ("a/b/c", "main", "repository"),
        ("/etc", "main", "repository"),
        ("", "main", "repository"),
        (REPO, "../../x", "revision"),
        (REPO, "", "revision"),
        (REPO, "a//b", "revision"),
        (REPO, "a b", "revision"),
    ] {
        let asked = server.log().len();
        let error = Weights::from_hub_with(repo, revision, &online).unwrap_err();
        says(&error, &["is not", word]);
        assert_eq!(server.log().len(), asked);
    }
}

/// A server of the repository whose answers to `GET /store/…` are `bad` until the flag is set.
fn broken(bad: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> (Server, Arc<AtomicBool>) {
    let healed = Arc::new(AtomicBool::new(false));
    let flag = healed.clone();
    let server = Server::start(move |r: &Request| {
        let reply = repo().reply(r);
        let body = r.method == "GET" && r.path.starts_with("/store/");
        if body && !flag.load(Ordering::SeqCst) { bad(reply) } else { reply }
    });
    (server, healed)
}

fn nothing_is_kept(bad: impl Fn(Reply) -> Reply + Send + Sync + 'static, words: &[&str]) {
    let cache = tempfile::tempdir().unwrap();
    let (server, healed) = broken(bad);
    let online = config(&server, cache.path());
    let error = load(&online, "main").unwrap_err();
    says(&error, &[REPO, "model.safetensors"]);
    says(&error, words);
    assert_eq!(left_behind(cache.path()), [""; 0]);
    let offline = HubConfig { offline: true, ..online.clone() };
    for revision in ["main", COMMIT] {
        says(&load(&offline, revision).unwrap_err(), &["offline"]);
    }
    healed.store(true, Ordering::SeqCst);
    check(&load(&online, "main").unwrap());
}

#[test]
fn a_truncated_body_is_not_kept() {
    nothing_is_kept(
        |mut reply| {
            reply.claims = Some(reply.body.len());
            reply.body.truncate(20);
            reply
        },
        &["broke off", "nothing was kept", "try again"],
    );
    // The same without a claim: the length of the body is what arrives.
    nothing_is_kept(
        |mut reply| {
            reply.body.truncate(20);
            reply
        },
        &["sent 20 of the", "nothing was kept"],
    );
}

#[test]
fn a_body_of_another_checksum_is_not_kept() {
    nothing_is_kept(
        |mut reply| {
            *reply.body.last_mut().unwrap() ^= 1;
            reply
        },
        &["arrived with the checksum", &sha256(&model()), "nothing was kept"],
    );
}

#[test]
fn an_error_page_is_no_checkpoint() {
    nothing_is_kept(|_| Reply::new(500, &[], b"<html>sorry</html>"), &["sent 18 of the"]);
    nothing_is_kept(|_| Reply::new(403, &[], b"{}"), &["sent 2 of the"]);
}

#[test]
fn a_small_file_has_a_checksum_too() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|r: &Request| {
        let mut reply = repo().reply(r);
        if r.method == "GET" && r.path.ends_with("config.json") {
            reply.body = br#"{"hidden": 9}"#.to_vec();
        }
        reply
    });
    let error = load(&config(&server, cache.path()), "main").unwrap_err();
    says(&error, &["config.json", "arrived with the checksum", &git(br#"{"hidden": 8}"#)]);
    // The weights arrived well before it.
    assert_eq!(left_behind(cache.path()), [sha256(&model())]);
}

#[test]
fn no_access_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    for (status, token, words) in [
        (401, None, ["wants a token (401)", "set HF_TOKEN"]),
        (401, Some("hf_secret"), ["refuses the token (401)", "check HF_TOKEN"]),
        (403, Some("hf_secret"), ["forbids it (403)", "conditions"]),
    ] {
        let server =
            Server::start(move |_| Reply::new(status, &[("X-Error-Message", "Access is gated")], b""));
        let online = HubConfig { token: token.map(str::to_owned), ..config(&server, cache.path()) };
        let error = load(&online, "main").unwrap_err();
        says(&error, &words);
        says(&error, &["Access is gated"]);
        assert!(!format!("{error} {error:?} {online:?}").contains("hf_secret"));
    }
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let cache = tempfile::tempdir().unwrap();
    let store = Server::start(|r| repo().reply(r));
    let elsewhere = store.endpoint();
    let server = Server::start(move |r| Repo { store: Some(elsewhere.clone()), ..repo() }.reply(r));
    let online = HubConfig { token: Some("hf_secret".to_owned()), ..config(&server, cache.path()) };
    check(&load(&online, "main").unwrap());
    assert!(
        server.tokens().iter().all(|t| t.as_deref() == Some("Bearer hf_secret")),
        "{:?}",
        server.tokens()
    );
    assert_eq!(store.tokens(), [None]);

    // Without a token none is sent, whatever the environment or the user's files hold.
    let other = tempfile::tempdir().unwrap();
    let server = Server::start(|r| repo().reply(r));
    check(&load(&config(&server, other.path()), "main").unwrap());
    assert!(server.tokens().iter().all(Option::is_none), "{:?}", server.tokens());
}

#[test]
fn a_busy_hub_is_waited_for_but_not_for_ever() {
    let cache = tempfile::tempdir().unwrap();
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |r| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429, &[("Retry-After", "1")], b""),
        1 => Reply::new(503, &[], b""),
        _ => repo().reply(r),
    });
    let start = Instant::now();
    check(&load(&config(&server, cache.path()), "main").unwrap());
    assert!(start.elapsed() >= Duration::from_secs(1));

    let other = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Reply::new(429, &[("Retry-After", "3600")], b""));
    let error = load(&config(&server, other.path()), "main").unwrap_err();
    says(&error, &["busy (429)", "3600 s", "allowed 5 s"]);
    assert_eq!(server.log().len(), 1);
    let server = Server::start(|_| Reply::new(429, &[], b""));
    says(&load(&config(&server, other.path()), "main").unwrap_err(), &["busy (429)", "try again later"]);
    assert_eq!(server.log().len(), 3);

    // A hub that is down is not asked for what the cache has.
    let server = Server::start(|_| Reply::new(503, &[], b""));
    check(&load(&config(&server, cache.path()), "main").unwrap());
    says(&load(&config(&server, other.path()), "main").unwrap_err(), &["answers 503", "does not have it"]);
}

#[test]
fn shards_are_fetched_by_their_index() {
    let index = |b: &str| {
        format!(
            r#"{{"metadata": {{"total_size": 12}}, "weight_map": {{"a": "m-1.safetensors", "b": "{b}"}}}}"#
        )
    };
    let sharded = move |b: &str| {
        Repo::default()
            .with("model.safetensors.index.json", index(b))
            .with("m-1.safetensors", file(&[("a", &[2], &[1.0, 2.0])]))
            .with("m-2.safetensors", file(&[("b", &[1], &[3.0])]))
    };
    let cache = tempfile::tempdir().unwrap();
    let good = sharded("m-2.safetensors");
    let server = Server::start(move |r| good.reply(r));
    let online = config(&server, cache.path());
    check(&load(&online, "main").unwrap());
    drop(server);
    check(&load(&online, "main").unwrap());
    check(&load(&HubConfig { offline: true, ..online }, COMMIT).unwrap());

    for name in
        ["../../../m-2.safetensors", "/etc/passwd", "sub/m.safetensors", "..", "a\\\\b.safetensors", "x.bin"]
    {
        let cache = tempfile::tempdir().unwrap();
        let bad = sharded(name);
        let server = Server::start(move |r| bad.reply(r));
        let error = load(&config(&server, cache.path()), "main").unwrap_err();
        let rule = if name == "x.bin" { "pickle" } else { "not the plain name" };
        says(&error, &["model.safetensors.index.json", rule]);
        assert!(server.log().iter().all(|line| !line.contains("passwd") && !line.contains("m-2")), "{name}");
    }
    let cache = tempfile::tempdir().unwrap();
    let bad = sharded("m-3.safetensors");
    let server = Server::start(move |r| bad.reply(r));
    let error = load(&config(&server, cache.path()), "main").unwrap_err();
    says(&error, &["names the shard `m-3.safetensors`", "incomplete"]);
}

#[test]
fn a_damaged_cache_is_noticed_and_mended() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|r| repo().reply(r));
    let online = config(&server, cache.path());
    let offline = HubConfig { offline: true, ..online.clone() };
    load(&online, "main").unwrap();
    let blob = folder(cache.path()).join("blobs").join(sha256(&model()));
    let mut flipped = model();
    *flipped.last_mut().unwrap() ^= 1;
    for bad in [&model()[..40], &flipped, b""] {
        std::fs::write(&blob, bad).unwrap();
        says(&load(&offline, "main").unwrap_err(), &["model.safetensors", "its checksum is", "remove it"]);
        check(&load(&online, "main").unwrap());
        check(&load(&offline, "main").unwrap());
    }
    // A process that was killed while it fetched.
    std::fs::remove_file(&blob).unwrap();
    let scratch = folder(cache.path()).join(".tmp-killed/models--team--encoder/blobs");
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::write(scratch.join(sha256(&model())), &model()[..40]).unwrap();
    says(&load(&offline, "main").unwrap_err(), &["link to nothing"]);
    check(&load(&online, "main").unwrap());
    #[cfg(unix)]
    a_link_out_of_the_repository(&cache, &offline);
}

#[cfg(unix)]
fn a_link_out_of_the_repository(cache: &tempfile::TempDir, offline: &HubConfig) {
    let link = folder(cache.path()).join("snapshots").join(COMMIT).join("config.json");
    let outside = cache.path().join(git(br#"{"hidden": 8}"#));
    std::fs::write(&outside, br#"{"hidden": 8}"#).unwrap();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    says(&load(offline, "main").unwrap_err(), &["config.json", "link out of the repository"]);
}

#[test]
fn what_the_hub_says_does_not_become_a_path() {
    for (name, value) in [
        ("X-Repo-Commit", "../../../../outside"),
        ("X-Repo-Commit", "main"),
        ("X-Linked-Etag", "../../../../outside"),
        ("X-Linked-Etag", "/outside"),
        ("X-Linked-Etag", ""),
        ("X-Linked-Etag", "5f3c-1a2b"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(move |r: &Request| {
            let mut reply = repo().reply(r);
            for header in reply.headers.iter_mut().filter(|(n, _)| *n == name) {
                value.clone_into(&mut header.1);
            }
            reply
        });
        let error = load(&config(&server, &cache.path().join("cache")), "main").unwrap_err();
        let rule = if name == "X-Repo-Commit" { "not a commit" } else { "no checksum" };
        says(&error, &[rule, "Weights::from_dir"]);
        assert!(server.log().iter().all(|line| line.starts_with("HEAD")));
        assert!(!cache.path().join("outside").exists());
    }
    // Another commit than the one that was asked for.
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|r: &Request| {
        let mut reply = repo().reply(r);
        for header in reply.headers.iter_mut().filter(|(n, _)| *n == "X-Repo-Commit") {
            header.1 = "b".repeat(40);
        }
        reply
    });
    let error = load(&config(&server, cache.path()), COMMIT).unwrap_err();
    says(&error, &["asked for commit 0123", "answered for bbbb"]);
}

#[test]
fn a_moved_repository_is_followed_on_the_same_host() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|r: &Request| {
        let old = r.path.strip_prefix("/team/old-name/");
        old.map_or_else(
            || repo().reply(r),
            |rest| Reply::new(307, &[("Location", &format!("/{REPO}/{rest}"))], b""),
        )
    });
    let weights = Weights::from_hub_with("team/old-name", "main", &config(&server, cache.path())).unwrap();
    check(&weights);
    let round = Server::start(|r: &Request| Reply::new(307, &[("Location", &r.path)], b""));
    says(&load(&config(&round, cache.path()), "main").unwrap_err(), &["redirects"]);
}

#[test]
fn settings_come_from_variables() {
    let of = |vars: &'static [(&str, &str)]| {
        HubConfig::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    };
    let plain = of(&[("HOME", "/someone")]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, Path::new("/someone/.cache/huggingface/hub"));
    assert_eq!((plain.token.clone(), plain.offline), (None, false));
    let set = of(&[
        ("HF_ENDPOINT", "https://mirror.example"),
        ("HF_TOKEN", "hf_secret"),
        ("HF_HOME", "/data/hf"),
        ("HF_HUB_OFFLINE", "True"),
    ]);
    assert_eq!(set.endpoint, "https://mirror.example");
    assert_eq!(set.token.as_deref(), Some("hf_secret"));
    assert_eq!(set.cache, Path::new("/data/hf/hub"));
    assert!(set.offline);
    assert!(!format!("{set:?}").contains("hf_secret"));
    let cache =
        of(&[("HF_HOME", "/data/hf"), ("HF_HUB_CACHE", "/fast"), ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", "")]);
    assert_eq!((cache.cache.as_path(), cache.offline, cache.token), (Path::new("/fast"), false, None));
    assert_eq!(of(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));

    let folder = tempfile::tempdir().unwrap();
    for endpoint in ["ftp://x", "not an address", "https://me:pass@x"] {
        let config =
            HubConfig { endpoint: endpoint.to_owned(), cache: folder.path().into(), ..plain.clone() };
        says(&load(&config, "main").unwrap_err(), &["endpoint", "HF_ENDPOINT"]);
    }
}
