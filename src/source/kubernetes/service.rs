//! What a service of a cluster answers, through the API server: where it has no other way to be reached from. It needs the
//! verb `get` on services/proxy.

use super::Spec;
use super::api::Api;
use crate::source::{Context, SourceError};
use reqwest::StatusCode;

/// A URL whose host is a service's name in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service<'a> {
    scheme: &'a str,
    name: &'a str,
    namespace: &'a str,
    port: &'a str,
    /// With the slash that it begins with.
    path: &'a str,
}

impl<'a> Service<'a> {
    /// Reads `http://NAME.NAMESPACE.svc[.cluster.local][:PORT][/PATH]`, or https.
    #[must_use]
    pub fn parse(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let usual = match scheme {
            "http" => "80",
            "https" => "443",
            _ => return None,
        };
        let (place, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = place.split_once(':').unwrap_or((place, usual));
        let mut labels = host.splitn(3, '.');
        let (name, namespace, svc) = (labels.next()?, labels.next()?, labels.next()?);
        let fits = (svc == "svc" || svc.starts_with("svc.")) && port.parse::<u16>().is_ok();
        (fits && !name.is_empty() && super::is_namespace(namespace)).then_some(Self {
            scheme,
            name,
            namespace,
            port,
            path,
        })
    }

    fn proxied(&self) -> String {
        let Self { scheme, name, namespace, port, path } = self;
        format!("/api/v1/namespaces/{namespace}/services/{scheme}:{name}:{port}/proxy{path}")
    }

    /// The status and the body of the answer.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub fn fetch(&self, context: &Context, cluster: &Spec) -> Result<(StatusCode, Vec<u8>), SourceError> {
        let api = Api::connect(context, cluster)?;
        let what = format!("ask the service {}/{}", self.namespace, self.name);
        let answer = context.wait(api.fetch(&self.proxied()))?;
        answer.map_err(|failure| api.fatal(&what, &failure).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_known_by_its_url() {
        let proxied = |url| Service::parse(url).map(|service| service.proxied());
        let at = |rest: &str| Some(format!("/api/v1/namespaces/shop/services/{rest}"));
        assert_eq!(proxied("http://web.shop.svc"), at("http:web:80/proxy/"));
        assert_eq!(proxied("http://web.shop.svc.cluster.local:8080/a?b=c"), at("http:web:8080/proxy/a?b=c"));
        assert_eq!(proxied("https://web.shop.svc/x"), at("https:web:443/proxy/x"));
        for other in ["http://shop.example.org/", "http://web.shop.svc:x/", "ftp://web.shop.svc/", "http://.shop.svc/"]
        {
            assert_eq!(proxied(other), None, "{other}");
        }
    }
}
