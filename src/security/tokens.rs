//! Bearer tokens (RFC 6750), one file for each group of services.
//!
//! Only digests are kept. A token is looked for among all digests of its group without stopping at the first that fits, and
//! digests are compared in constant time, so that the time tells nothing of the others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::watched::{Named, Watched};
use crate::error::{Error, Violations};

/// Below this a token can be guessed.
const SHORTEST: usize = 16;
/// Far below what the headers of a request may take.
const LONGEST: usize = 1024;
/// Tokens of one file: every request is compared with them all.
const MOST: usize = 1000;
const SCHEME: &str = "bearer";

/// Services that are let in by the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Sampling.
    Generation,
    /// Scoring.
    Scoring,
    /// The catalogue, which clients ask before anything else.
    Models,
    /// The Open Inference Protocol, which samples, scores and lists.
    Inference,
    /// Reflection, both versions.
    Reflection,
    /// Health; probes bring no tokens as a rule.
    Health,
    /// Whatever changes what is served.
    Admin,
}

impl Group {
    /// Every group.
    pub const ALL: [Group; 7] =
        [Self::Generation, Self::Scoring, Self::Models, Self::Inference, Self::Reflection, Self::Health, Self::Admin];

    /// The configuration key of its file.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Generation => "auth.generation_tokens",
            Self::Scoring => "auth.scoring_tokens",
            Self::Models => "auth.models_tokens",
            Self::Inference => "auth.inference_tokens",
            Self::Reflection => "auth.reflection_tokens",
            Self::Health => "auth.health_tokens",
            Self::Admin => "auth.admin_tokens",
        }
    }
}

/// The file of each group that has one; the others are open.
pub type TokenFiles = BTreeMap<Group, PathBuf>;

type TokenDigest = [u8; 32];

/// The tokens in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens(BTreeMap<Group, Watched<Arc<Vec<TokenDigest>>>>);

impl Tokens {
    /// Reads and follows `files`.
    pub(super) fn watch(files: &TokenFiles) -> Result<Self, Violations> {
        let (mut groups, mut faults) = (BTreeMap::new(), Violations::new());
        for (&group, path) in files {
            let file = Named { key: group.key(), path: path.clone() };
            match Watched::load(vec![file], |files, contents| digests(files, &contents.concat()).map(Arc::new)) {
                Ok(watched) => _ = groups.insert(group, watched),
                Err(more) => faults.add_all(more),
            }
        }
        faults.into_result(Self(groups))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn groups(&self) -> [String; 2] {
        let named = |with: bool| {
            let groups = Group::ALL.into_iter().filter(|group| self.0.contains_key(group) == with);
            groups.map(|group| format!("{group:?}").to_lowercase()).collect::<Vec<_>>().join(", ")
        };
        [named(true), named(false)]
    }

    pub(super) fn check(&self, group: Group, headers: &HeaderMap) -> Result<(), Error> {
        let Some(watched) = self.0.get(&group) else { return Ok(()) };
        let given: TokenDigest = Sha256::digest(bearer(headers).ok_or(Error::Unauthenticated)?).into();
        let known = watched.now().iter().fold(Choice::from(0), |found, digest| found | digest.ct_eq(&given));
        if known.into() { Ok(()) } else { Err(Error::Unauthenticated) }
    }
}

/// The token that a request brings, if it brings one and no more.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(token.trim().as_bytes())
}

fn digests(files: &[Named], content: &[u8]) -> Result<Vec<TokenDigest>, Violations> {
    let (key, path) = files.first().map(|file| (file.key, file.path.display().to_string())).unwrap_or_default();
    let tokens = parse(content).map_err(|why| Violations::one(key, format!("cannot use {path}: {why}")))?;
    if tokens.is_empty() {
        tracing::warn!(key, path, "there is no token in this file: nobody is let in");
    }
    Ok(tokens.into_iter().map(|token| Sha256::digest(token).into()).collect())
}

/// The first token of a file as clients keep it, which is one as the daemon reads it.
///
/// # Errors
/// What is wrong with the file, without any of its content.
pub fn first_token(content: &[u8]) -> Result<&str, String> {
    parse(content)?.first().copied().ok_or_else(|| "there is no token in it".to_owned())
}

/// One token a line; a line that begins with `#` is a comment. Faults never repeat what the file says.
fn parse(content: &[u8]) -> Result<Vec<&str>, String> {
    let text = std::str::from_utf8(content).map_err(|_| "it is not text")?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let token = line.trim();
        if token.is_empty() || token.starts_with('#') {
            continue;
        }
        if !(SHORTEST..=LONGEST).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let rule = format!("must be a token of {SHORTEST} to {LONGEST} visible ASCII characters or a # comment");
            return Err(format!("line {} {rule}", number + 1));
        }
        tokens.push(token);
    }
    if tokens.len() > MOST {
        return Err(format!("it holds {} tokens, at most {MOST}", tokens.len()));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "first-token-of-all";
    const OTHER: &str = "another+token/with=signs";

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn a_group_lets_in_whoever_brings_one_of_its_tokens_and_nobody_else() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            std::fs::write(root.path().join(name), content).unwrap();
            root.path().join(name)
        };
        let files = TokenFiles::from([
            (Group::Generation, file("g", &format!("# two\n{ONE}\n\n  {OTHER} \r\n"))),
            (Group::Admin, file("a", &format!("{OTHER}\n"))),
            (Group::Scoring, file("s", "# nobody\n")),
        ]);
        let tokens = Tokens::watch(&files).unwrap();
        let passes = |group, values: &[&str]| tokens.check(group, &headers(values)).is_ok();
        let (one, other) = (format!("Bearer {ONE}"), format!("bearer  {OTHER}"));
        assert!(passes(Group::Generation, &[&one]) && passes(Group::Generation, &[&other]));
        assert!(passes(Group::Admin, &[&other]) && !passes(Group::Admin, &[&one]));
        assert!(!passes(Group::Scoring, &[&one]) && !passes(Group::Scoring, &[&other]) && !passes(Group::Scoring, &[]));
        for open in [Group::Models, Group::Inference, Group::Reflection, Group::Health] {
            assert!(passes(open, &[]) && passes(open, &["nonsense"]));
        }
        let (part, more) = (format!("Bearer {}", &ONE[1..]), format!("Bearer {ONE}x"));
        let (basic, comment) = (format!("Basic {ONE}"), "Bearer # two");
        for wrong in
            [&[][..], &[ONE], &["Bearer"], &["Bearer "], &[&part], &[&more], &[&basic], &[comment], &[&one, &one]]
        {
            assert_eq!(tokens.check(Group::Generation, &headers(wrong)), Err(Error::Unauthenticated), "{wrong:?}");
        }
        assert_eq!(
            tokens.groups(),
            ["generation, scoring, admin", "models, inference, reflection, health"].map(String::from)
        );
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_of_without_what_it_says() {
        for (content, why) in [
            (b"# fine\nshort-secret\n".to_vec(), "line 2 must be a token of 16 to 1024 visible ASCII characters"),
            (b"a secret with spaces in it\n".to_vec(), "line 1 must be"),
            (vec![b'x'; LONGEST + 1], "line 1 must be"),
            ("ein-geheimer-schl\u{fc}ssel\n".as_bytes().to_vec(), "line 1 must be"),
            (b"\xff\xfe secret".to_vec(), "it is not text"),
            (format!("{ONE}\n").repeat(MOST + 1).into_bytes(), "it holds 1001 tokens, at most 1000"),
        ] {
            let fault = parse(&content).unwrap_err();
            assert!(fault.contains(why) && !fault.contains("secret") && !fault.contains("geheim"), "{fault}");
        }
        assert_eq!(first_token(format!("#\n{ONE}\n{OTHER}").as_bytes()), Ok(ONE));
        assert_eq!(first_token(b"# none\n"), Err("there is no token in it".to_owned()));
    }
}
