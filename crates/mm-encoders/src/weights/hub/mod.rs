//! Checkpoints of a model hub: which commit a revision stands for, and its files, checked, in the cache.
//!
//! The crate `hf-hub` moves the bytes. What it does not promise is done here: it is told endpoint, token and folder and
//! reads no environment; it works in a scratch folder, and a file goes from there into the cache only after its size and
//! checksum (the SHA-256 of a large file, git's SHA-1 of a small one) are those that the hub announced; an offline mode;
//! waiting as long as a busy hub asks for. What the hub says becomes part of a path only if it is a hexadecimal number of
//! the right length.
//!
//! The cache has the layout of Python's `huggingface_hub`, and both can use one folder:
//!
//! ```text
//! models--OWNER--NAME/blobs/CHECKSUM           contents
//! models--OWNER--NAME/snapshots/COMMIT/FILE    links to them
//! models--OWNER--NAME/refs/REVISION            the commit that a branch or tag stood for when it was last asked for
//! models--OWNER--NAME/.no_exist/COMMIT/FILE    files that the commit does not have
//! ```

mod cache;
mod remote;

use super::error::{Result, WeightsError, shown};
use super::file::pickle;
use super::folder::{INDEX, MODEL, shards_of, weight_map};
use cache::{Cache, Entry};
use remote::{Head, Remote, Trouble};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";
/// What a repository without safetensors has.
const PICKLE: &str = "pytorch_model.bin";
/// Files that a checkpoint may have beside its weights.
const BESIDE: [&str; 2] = ["config.json", "preprocessor_config.json"];

/// How to reach a hub, and where its files are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub's address. Default: `https://huggingface.co`.
    pub endpoint: String,
    /// A token for repositories that need one. It is sent to the endpoint only, and never printed.
    pub token: Option<String>,
    /// The folder of the cache. Default: `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Whether only the cache is used. Default: no.
    pub offline: bool,
    /// The longest single wait that a busy hub (status 429) may ask for. Default: 60 s.
    pub patience: Duration,
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .field("patience", &self.patience)
            .finish()
    }
}

impl HubConfig {
    /// The settings of the environment: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE` or `HF_HOME`, and `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// The same from any source of variables; an empty one counts as not set.
    pub fn from_vars(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let home = || {
            let base = get("XDG_CACHE_HOME").map(PathBuf::from);
            let user = || get("HOME").or_else(|| get("USERPROFILE")).map_or_else(PathBuf::new, PathBuf::from);
            base.unwrap_or_else(|| user().join(".cache")).join("huggingface")
        };
        let hub = || get("HF_HOME").map_or_else(home, PathBuf::from).join("hub");
        let offline = get("HF_HUB_OFFLINE")
            .is_some_and(|v| ["1", "on", "yes", "true"].iter().any(|yes| v.eq_ignore_ascii_case(yes)));
        Self {
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: get("HF_TOKEN"),
            cache: get("HF_HUB_CACHE").map_or_else(hub, PathBuf::from),
            offline,
            patience: Duration::from_secs(60),
        }
    }
}

/// A repository at a revision, both checked: they become parts of paths and addresses.
#[derive(Debug, Clone)]
struct Wanted {
    repo: String,
    revision: String,
}

impl Wanted {
    fn new(repo: &str, revision: &str) -> Result<Self> {
        let wanted = Self { repo: repo.to_owned(), revision: revision.to_owned() };
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with('.')
                && !part.contains("..")
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if !repo.split('/').all(plain) || repo.split('/').count() > 2 || repo.contains("--") {
            let rule = format!("`{}` is not the name of a repository", shown(repo));
            return Err(wanted.error(rule, "give `owner/name`"));
        }
        if !revision.split('/').all(plain) {
            let rule = format!("`{}` is not a revision", shown(revision));
            return Err(wanted.error(rule, "give a branch such as `main`, a tag, or a commit of 40 digits"));
        }
        Ok(wanted)
    }

    /// The revision, if it is a commit already.
    fn commit(&self) -> Option<String> {
        is_hex(&self.revision, 40).then(|| self.revision.to_ascii_lowercase())
    }

    fn error(&self, rule: impl Into<String>, remedy: impl Into<String>) -> WeightsError {
        let (repo, revision) = (shown(&self.repo), shown(&self.revision));
        WeightsError::Hub { repo, revision, rule: rule.into(), remedy: remedy.into() }
    }
}

/// Whether a text is a hexadecimal number of so many digits.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A checkpoint in the cache.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) commit: String,
    pub(super) snapshot: PathBuf,
}

/// Finds a checkpoint in the cache or fetches it into it.
pub(super) fn resolve(repo: &str, revision: &str, config: &HubConfig) -> Result<Found> {
    let wanted = Wanted::new(repo, revision)?;
    let cache = Cache::new(&config.cache, repo);
    if config.offline {
        return local(&wanted, &cache)?.ok_or_else(|| {
            let rule = format!("not (or not wholly) in the cache {}, and offline", cache.root().display());
            wanted.error(rule, "unset HF_HUB_OFFLINE once to fetch it")
        });
    }
    // A thread of its own, because blocking HTTP must not be used from within an asynchronous runtime.
    let fetched = std::thread::scope(|scope| match scope.spawn(|| fetch(&wanted, &cache, config)).join() {
        Ok(fetched) => fetched,
        Err(panic) => std::panic::resume_unwind(panic),
    });
    match fetched {
        Ok(found) => Ok(found),
        Err(Trouble::Refused(error)) => Err(error),
        Err(Trouble::Unreachable(rule)) => local(&wanted, &cache)?.ok_or_else(|| {
            let rule = format!("{rule}, and the cache {} does not have it", cache.root().display());
            wanted.error(rule, "check the network, HF_ENDPOINT and the proxy")
        }),
    }
}

/// What the cache alone can give; `None` where something of the weights is missing.
fn local(wanted: &Wanted, cache: &Cache) -> Result<Option<Found>> {
    let Some(commit) = wanted.commit().or_else(|| cache.read_ref(&wanted.revision)) else {
        return Ok(None);
    };
    let there = |file: &str| match cache.get(&commit, file)? {
        Entry::Whole(path) => Ok(Some(path)),
        Entry::Absent | Entry::Unknown => Ok(None),
        Entry::Damaged(rule) => {
            let path = cache.snapshot(&commit).join(file).display().to_string();
            Err(WeightsError::invalid(&path, rule, "remove it, and fetch it again while online"))
        }
    };
    if there(MODEL)?.is_none() {
        let Some(index) = there(INDEX)? else { return Ok(None) };
        for shard in shards(&index)? {
            if there(&shard)?.is_none() {
                return Ok(None);
            }
        }
    }
    for file in BESIDE {
        there(file)?;
    }
    Ok(Some(Found { snapshot: cache.snapshot(&commit), commit }))
}

fn shards(index: &Path) -> Result<Vec<String>> {
    shards_of(&weight_map(index)?, &index.display().to_string())
}

/// Fetches what the cache lacks.
fn fetch(wanted: &Wanted, cache: &Cache, config: &HubConfig) -> std::result::Result<Found, Trouble> {
    let mut session = Session { wanted, cache, config, commit: wanted.commit(), remote: None };
    if session.file(MODEL)?.is_none() {
        let Some(index) = session.file(INDEX)? else {
            return Err(session.nothing_to_load());
        };
        for shard in shards(&index)? {
            if session.file(&shard)?.is_none() {
                let rule = format!("the index names the shard `{shard}`, which the repository does not have");
                return Err(wanted.error(rule, "the checkpoint is incomplete: use another revision").into());
            }
        }
    }
    let Some(commit) = session.commit.clone() else {
        return Err(wanted.error("the hub names no commit (X-Repo-Commit)", remote::OTHER_WAY).into());
    };
    for file in BESIDE {
        match session.file(file) {
            // The weights are whole, and whoever needs the file will hear that it is not there.
            Ok(_) | Err(Trouble::Unreachable(_)) => {}
            Err(refused) => return Err(refused),
        }
    }
    if wanted.commit().is_none() {
        cache.write_ref(&wanted.revision, &commit)?;
    }
    Ok(Found { snapshot: cache.snapshot(&commit), commit })
}

struct Session<'a> {
    wanted: &'a Wanted,
    cache: &'a Cache,
    config: &'a HubConfig,
    commit: Option<String>,
    // Made when the first request is needed.
    remote: Option<Remote>,
}

impl Session<'_> {
    /// The file in the cache, fetched if need be; `None` if the repository has no such file.
    fn file(&mut self, file: &str) -> std::result::Result<Option<PathBuf>, Trouble> {
        if let Some(commit) = &self.commit {
            match self.cache.get(commit, file)? {
                Entry::Whole(path) => return Ok(Some(path)),
                Entry::Absent => return Ok(None),
                Entry::Unknown | Entry::Damaged(_) => {}
            }
        }
        let about = match self.head(file)? {
            Head::Found(about) => about,
            Head::Absent => {
                if let Some(commit) = &self.commit {
                    self.cache.mark_absent(commit, file)?;
                }
                return Ok(None);
            }
        };
        let Some(commit) = self.commit.clone() else {
            return Err(self
                .wanted
                .error("the hub names no commit (X-Repo-Commit)", remote::OTHER_WAY)
                .into());
        };
        if !self.cache.has_blob(&about.checksum)? {
            let cache = self.cache;
            let scratch = cache.scratch()?;
            let blob = self.remote()?.download(&commit, file, &about, scratch.path())?;
            cache.keep(&blob, &about.checksum)?;
        }
        Ok(Some(self.cache.link(&commit, file, &about.checksum)?))
    }

    fn head(&mut self, file: &str) -> std::result::Result<Head, Trouble> {
        let revision = self.commit.clone().unwrap_or_else(|| self.wanted.revision.clone());
        let (head, commit) = self.remote()?.head(&revision, file)?;
        if let Some(commit) = commit {
            let known = self.commit.get_or_insert_with(|| commit.clone());
            if *known != commit {
                let rule = format!("asked for commit {known}, the hub answered for {commit}");
                return Err(self.wanted.error(rule, remote::OTHER_WAY).into());
            }
        }
        Ok(head)
    }

    fn remote(&mut self) -> std::result::Result<&Remote, Trouble> {
        if self.remote.is_none() {
            self.remote = Some(Remote::new(self.wanted, self.config)?);
        }
        self.remote.as_ref().ok_or_else(|| Trouble::Unreachable("no client".to_owned()))
    }

    fn nothing_to_load(&mut self) -> Trouble {
        match self.head(PICKLE) {
            Ok(Head::Found(_)) => Trouble::Refused(pickle(&format!("{}, `{PICKLE}`", self.wanted.repo))),
            Ok(Head::Absent) => {
                let rule =
                    format!("the repository, the revision, or in it `{MODEL}` and `{INDEX}` do not exist");
                let remedy = "check the names; a private repository needs HF_TOKEN";
                Trouble::Refused(self.wanted.error(rule, remedy))
            }
            Err(trouble) => trouble,
        }
    }
}
