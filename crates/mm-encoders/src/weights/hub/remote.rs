//! The hub's side: what it says of a file, and the file.

use super::cache::Checksum;
use super::{HubConfig, Wanted, is_hex};
use crate::weights::error::{WeightsError, shown};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClient, HFError, HFRepositorySync};
use reqwest::blocking::{Client, Response};
use reqwest::header::{ETAG, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const OTHER_WAY: &str =
    "check HF_ENDPOINT, or fetch the files by another program and use `Weights::from_dir`";
const AGENT: &str = concat!("mm-encoders/", env!("CARGO_PKG_VERSION"));
const ATTEMPTS: u32 = 3;
const REDIRECTS: usize = 5;

/// Why the hub did not help.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There was no answer: the cache may do.
    Unreachable(String),
    /// There was an answer, or the trouble is on our side.
    Refused(WeightsError),
}

impl From<WeightsError> for Trouble {
    fn from(error: WeightsError) -> Self {
        Self::Refused(error)
    }
}

/// What the hub says of a file.
#[derive(Debug)]
pub(super) enum Head {
    /// It is there.
    Found(About),
    /// There is no such file; perhaps there is no such revision.
    Absent,
}

#[derive(Debug)]
pub(super) struct About {
    pub(super) checksum: Checksum,
    size: Option<u64>,
}

type Answer<T> = Result<T, Trouble>;

/// A connection to one repository.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    endpoint: Url,
    wanted: Wanted,
    config: HubConfig,
}

impl Remote {
    pub(super) fn new(wanted: &Wanted, config: &HubConfig) -> Answer<Self> {
        let fault =
            |rule: String| Trouble::Refused(wanted.error(rule, "set HF_ENDPOINT to an https address"));
        let address = format!("{}/", config.endpoint.trim_end_matches('/'));
        let endpoint = Url::parse(&address)
            .map_err(|e| fault(format!("the endpoint `{}` is no address: {e}", shown(&config.endpoint))))?;
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(fault(format!("the endpoint's scheme is `{}`", endpoint.scheme())));
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            return Err(fault("the endpoint holds a user's name or password".to_owned()));
        }
        let client = Client::builder()
            .user_agent(AGENT)
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| {
                wanted.error(format!("no HTTP client: {}", chain(&e)), "check the proxy settings")
            })?;
        Ok(Self { client, endpoint, wanted: wanted.clone(), config: config.clone() })
    }

    /// Asks for a file's checksum and size, and for the commit. A redirect to another host is not followed: the headers
    /// that count are the hub's own.
    pub(super) fn head(&self, revision: &str, file: &str) -> Answer<(Head, Option<String>)> {
        let path = format!("{}/resolve/{}/{file}", self.wanted.repo, revision.replace('/', "%2F"));
        let mut url =
            self.endpoint.join(&path).map_err(|e| self.refuse(&format!("`{path}`: {e}"), OTHER_WAY))?;
        for _ in 0..REDIRECTS {
            let response = self.ask(&url)?;
            let headers = response.headers();
            let commit = text(headers, "x-repo-commit").map(str::to_ascii_lowercase);
            if let Some(commit) = commit.as_ref().filter(|c| !is_hex(c, 40)) {
                let rule = format!("X-Repo-Commit of `{file}` is `{}`, not a commit", shown(commit));
                return Err(self.refuse(&rule, OTHER_WAY));
            }
            if response.status().is_redirection() && commit.is_none() {
                let target = text(headers, LOCATION.as_str()).and_then(|l| url.join(l).ok());
                if let Some(target) = target.filter(|t| t.host_str() == url.host_str()) {
                    url = target;
                    continue;
                }
            }
            let status = response.status();
            if status == StatusCode::NOT_FOUND {
                return self.absent(headers).map(|head| (head, commit));
            }
            if status.is_server_error() {
                return Err(Trouble::Unreachable(format!("the hub answers {status}")));
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(status, headers, file));
            }
            let tag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str())).unwrap_or("");
            let Some(checksum) = Checksum::parse(tag) else {
                let rule = format!("the hub gives no checksum for `{file}`, but the tag `{}`", shown(tag));
                return Err(self.refuse(&rule, OTHER_WAY));
            };
            let linked = text(headers, "x-linked-size");
            // Of a redirect, the length is that of its own empty or explaining body.
            let own = text(headers, "content-length").filter(|_| status.is_success());
            let size = linked.or(own).and_then(|n| n.parse().ok());
            return Ok((Head::Found(About { checksum, size }), commit));
        }
        Err(self.refuse(&format!("more than {REDIRECTS} redirects for `{file}`"), OTHER_WAY))
    }

    fn absent(&self, headers: &HeaderMap) -> Answer<Head> {
        let code = text(headers, "x-error-code").unwrap_or_default();
        match code {
            "RepoNotFound" => {
                Err(self
                    .refuse("there is no such repository", "check the name; a private one needs HF_TOKEN"))
            }
            "RevisionNotFound" => {
                Err(self.refuse("there is no such revision", "check the branch, tag or commit"))
            }
            _ => Ok(Head::Absent),
        }
    }

    /// One HEAD request, repeated while the hub is busy.
    fn ask(&self, url: &Url) -> Answer<Response> {
        for attempt in 1.. {
            let mut request = self.client.request(Method::HEAD, url.clone());
            // Over to another scheme or port the token does not go.
            if url.origin() == self.endpoint.origin()
                && let Some(token) = &self.config.token
            {
                request = request.bearer_auth(token);
            }
            let response = request.send().map_err(|e| {
                if e.is_builder() {
                    return self
                        .refuse(&format!("the request cannot be made: {}", chain(&e)), "check HF_TOKEN");
                }
                Trouble::Unreachable(format!("the hub does not answer: {}", chain(&e)))
            })?;
            let status = response.status();
            if status == StatusCode::TOO_MANY_REQUESTS && attempt < ATTEMPTS {
                let asked =
                    text(response.headers(), RETRY_AFTER.as_str()).and_then(|s| s.trim().parse().ok());
                self.wait(asked.map(Duration::from_secs), attempt)?;
            } else if status.is_server_error() && attempt < ATTEMPTS {
                self.wait(None, attempt)?;
            } else {
                return Ok(response);
            }
        }
        Err(self.refuse("the hub does not answer", OTHER_WAY))
    }

    /// Waits as long as asked, or a moment that doubles.
    fn wait(&self, asked: Option<Duration>, attempt: u32) -> Answer<()> {
        let time = asked.unwrap_or_else(|| Duration::from_millis(50 << attempt));
        if time > self.config.patience {
            let (asked, most) = (time.as_secs(), self.config.patience.as_secs());
            let rule =
                format!("the hub is busy (429) and asks to wait {asked} s, longer than the allowed {most} s");
            return Err(self.refuse(&rule, "try again then, or set HF_TOKEN for a higher limit"));
        }
        std::thread::sleep(time);
        Ok(())
    }

    /// Fetches a file into the scratch folder and compares it with what the hub said of it.
    pub(super) fn download(
        &self,
        commit: &str,
        file: &str,
        about: &About,
        scratch: &Path,
    ) -> Answer<PathBuf> {
        let repo = self.transfer(scratch)?;
        let mut last = String::new();
        for attempt in 1..=ATTEMPTS {
            if attempt > 1 {
                self.wait(None, attempt)?;
            }
            let send = repo.download_file().filename(file).revision(commit).force_download(true).send();
            let path = match send {
                Ok(path) => path,
                Err(HFError::RateLimited { retry_after, .. }) if attempt < ATTEMPTS => {
                    self.wait(retry_after, attempt)?;
                    continue;
                }
                // Broken off, or no connection: worth another attempt.
                Err(HFError::Request { source, .. }) => {
                    last = format!("the download of `{file}` broke off: {}", chain(&source));
                    continue;
                }
                Err(e) => return Err(self.download_error(file, &e)),
            };
            let path = path.canonicalize().map_err(WeightsError::io("read", &path))?;
            let size = std::fs::metadata(&path).map_err(WeightsError::io("read", &path))?.len();
            if let Some(announced) = about.size.filter(|n| *n != size) {
                last = format!("the hub sent {size} of the {announced} bytes of `{file}`");
                continue;
            }
            let found = about.checksum.of(&path)?;
            if found != about.checksum {
                let (found, announced) = (found.name(), about.checksum.name());
                let rule =
                    format!("`{file}` arrived with the checksum {found}, the hub announced {announced}");
                return Err(self.refuse(&rule, "nothing was kept: try again, or use another endpoint"));
            }
            return Ok(path);
        }
        Err(self.refuse(&last, "nothing was kept: try again"))
    }

    /// The other crate's client. It must not look for settings of its own: endpoint, token and folder are given.
    fn transfer(&self, scratch: &Path) -> Answer<HFRepositorySync<RepoTypeModel>> {
        let fault =
            |e: &dyn std::error::Error| self.refuse(&format!("no HTTP client: {}", chain(e)), OTHER_WAY);
        let http = reqwest::Client::builder()
            .user_agent(AGENT)
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(60))
            .build()
            .map_err(|e| fault(&e))?;
        // A line break cannot stand in a header: with it no header is sent. Without any token it would look for one.
        let token = self.config.token.as_deref().unwrap_or("\n");
        let client = HFClient::builder()
            .endpoint(self.endpoint.as_str())
            .token(token)
            .cache_dir(scratch)
            .client(http)
            .retry_max_attempts(2)
            .build_sync()
            .map_err(|e| fault(&e))?;
        let (owner, name) = hf_hub::split_id(&self.wanted.repo);
        Ok(client.model(owner, name))
    }

    fn download_error(&self, file: &str, error: &HFError) -> Trouble {
        match error {
            HFError::RateLimited { .. } => {
                self.refusal(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), file)
            }
            HFError::AuthRequired { .. } => self.refusal(StatusCode::UNAUTHORIZED, &HeaderMap::new(), file),
            HFError::Forbidden { .. } => self.refusal(StatusCode::FORBIDDEN, &HeaderMap::new(), file),
            e => self.refuse(&format!("the download of `{file}` failed: {}", shown(&chain(e))), OTHER_WAY),
        }
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap, file: &str) -> Trouble {
        let said = text(headers, "x-error-message").map(|m| format!(" ({})", shown(m))).unwrap_or_default();
        let (what, remedy) = match status {
            StatusCode::UNAUTHORIZED if self.config.token.is_some() => {
                ("refuses the token (401)".to_owned(), "check HF_TOKEN and the name of the repository")
            }
            StatusCode::UNAUTHORIZED => (
                "wants a token (401)".to_owned(),
                "set HF_TOKEN if the repository is private, and check its name",
            ),
            StatusCode::FORBIDDEN => (
                "forbids it (403)".to_owned(),
                "accept the model's conditions on its page, or use a token with access",
            ),
            StatusCode::TOO_MANY_REQUESTS => {
                ("is busy (429)".to_owned(), "try again later, or set HF_TOKEN for a higher limit")
            }
            _ => (format!("answers {status}"), "try again later"),
        };
        self.refuse(&format!("the hub {what} for `{file}`{said}"), remedy)
    }

    fn refuse(&self, rule: &str, remedy: &str) -> Trouble {
        Trouble::Refused(self.wanted.error(rule, remedy))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An error with its reasons: the outermost says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        let reason = e.to_string();
        if !all.contains(&reason) {
            all = format!("{all}: {reason}");
        }
        next = e.source();
    }
    all
}
