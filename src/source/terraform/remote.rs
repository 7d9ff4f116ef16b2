//! The http backend: the state at an address, the lock at another, with the methods that the server wants (GitLab's managed
//! states, for one: POST for all but DELETE to unlock).

use super::DEFAULT;
use super::backend::{Backend, Lock, told};
use crate::source::http::{self, Failure, Server};
use crate::source::{Context, SourceError};
use reqwest::{Method, RequestBuilder, StatusCode};

pub(super) struct Http {
    spec: super::Http,
    server: Server,
    lock_server: Option<Server>,
    unlock_server: Option<Server>,
}

impl Http {
    pub fn new(spec: super::Http) -> Result<Self, SourceError> {
        let open = |address: &String| Server::new(address, spec.tls.as_ref());
        let (server, lock_server) = (open(&spec.address)?, spec.lock_address.as_ref().map(open).transpose()?);
        let unlock = spec.unlock_address.as_ref().or(spec.lock_address.as_ref());
        let unlock_server = unlock.map(open).transpose()?;
        Ok(Self { spec, server, lock_server, unlock_server })
    }

    fn request(&self, server: &Server, method: Method, query: &str) -> Result<RequestBuilder, SourceError> {
        let request = server.request(method, query);
        Ok(match (&self.spec.username, &self.spec.password) {
            (Some(name), Some(password)) => request.basic_auth(name, Some(password.read()?.as_str())),
            _ => request,
        })
    }

    fn failed(&self, attempt: &str, failure: &Failure) -> SourceError {
        let need = if failure.is_denied() { "check username and password" } else { "" };
        SourceError::System {
            attempt: format!("{attempt} the state at {}", self.spec.address),
            text: failure.text.clone(),
            need: need.into(),
        }
    }

    fn method(given: Option<&String>, usual: &str) -> Method {
        let name = given.map_or(usual, String::as_str);
        Method::from_bytes(name.as_bytes()).unwrap_or(Method::POST)
    }
}

impl Backend for Http {
    fn place(&self) -> String {
        self.spec.address.clone()
    }

    fn workspaces(&self, _context: &Context) -> Result<Vec<String>, SourceError> {
        Ok(vec![DEFAULT.into()])
    }

    fn read(&self, context: &Context, _workspace: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let request = self.request(&self.server, Method::GET, "")?;
        let answer = match http::send(context, request)? {
            Ok(answer) if answer.status() == StatusCode::NO_CONTENT => return Ok(None),
            Ok(answer) => answer,
            Err(failure) if failure.status == Some(StatusCode::NOT_FOUND) => return Ok(None),
            Err(failure) => return Err(self.failed("read", &failure)),
        };
        let bytes = http::whole(context, answer)?.map_err(|failure| self.failed("read", &failure))?;
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn write(&self, context: &Context, _workspace: &str, state: &[u8], lock: &Lock) -> Result<(), SourceError> {
        let mark = if self.spec.address.contains('?') { '&' } else { '?' };
        let query = if self.lock_server.is_some() { format!("{mark}ID={}", lock.id) } else { String::new() };
        let method = Self::method(self.spec.update_method.as_ref(), "POST");
        let request = self.request(&self.server, method, &query)?;
        let request = request.header("Content-Type", "application/json").body(state.to_vec());
        http::send(context, request)?.map(|_| ()).map_err(|failure| self.failed("write", &failure))
    }

    /// The protocol has no question for it.
    fn holder(&self, _context: &Context, _workspace: &str) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    fn lock(&self, context: &Context, _workspace: &str, lock: &Lock) -> Result<Result<(), String>, SourceError> {
        let Some(server) = &self.lock_server else { return Ok(Ok(())) };
        let request = self
            .request(server, Self::method(self.spec.lock_method.as_ref(), "LOCK"), "")?
            .json(&lock.info(&self.spec.address));
        match http::send(context, request)? {
            Ok(_) => Ok(Ok(())),
            Err(failure) if matches!(failure.status, Some(StatusCode::LOCKED | StatusCode::CONFLICT)) => {
                let info = failure.text.split_once(": ").map_or("", |(_, body)| body);
                Ok(Err(told(info.as_bytes())))
            }
            Err(failure) => Err(self.failed("lock", &failure)),
        }
    }

    fn unlock(&self, context: &Context, _workspace: &str, lock: &Lock) -> Result<(), SourceError> {
        let (Some(_), Some(server)) = (&self.lock_server, &self.unlock_server) else { return Ok(()) };
        let method = Self::method(self.spec.unlock_method.as_ref(), "UNLOCK");
        let request = self.request(server, method, "")?.json(&lock.info(&self.spec.address));
        http::send(context, request)?.map(|_| ()).map_err(|failure| self.failed("unlock", &failure))
    }
}
