//! From the SDK's errors to the store's. What is kept of them is text: codes and messages, never requests.

use crate::store::{StoreError, StoreErrorKind};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;

/// What the server answered.
#[derive(Debug, thiserror::Error)]
#[error("the server answered {status} {code}: {message} (request {request})")]
struct Answer {
    status: u16,
    code: String,
    message: String,
    request: String,
}

pub(super) fn other(action: &'static str, object: impl Into<String>, why: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Other, action, object).because(why)
}

/// What went wrong with a request, in the store's terms.
pub fn failed<E>(action: &'static str, object: impl Into<String>, error: &SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    if let SdkError::ServiceError(service) = error {
        let status = service.raw().status().as_u16();
        let (code, message) = (service.err().code().unwrap_or(""), service.err().message().unwrap_or(""));
        return StoreError::new(classify(status, code, message), action, object).because(Answer {
            status,
            code: code.to_owned(),
            message: message.to_owned(),
            request: service.err().meta().request_id().unwrap_or("without id").to_owned(),
        });
    }
    let kind = match error {
        SdkError::TimeoutError(_) | SdkError::ResponseError(_) => StoreErrorKind::Unavailable,
        SdkError::DispatchFailure(f) if f.is_timeout() || f.is_io() || f.as_other().is_some() => {
            StoreErrorKind::Unavailable
        }
        _ => StoreErrorKind::Other,
    };
    // Without a service's answer there are only layers of the client, which say little but in their texts.
    let (mut texts, mut cause): (Vec<String>, _) = (Vec::new(), Some(error as &dyn std::error::Error));
    let mut kind = kind;
    while let Some(this) = cause {
        if this.is::<CredentialsError>() {
            kind = StoreErrorKind::Denied;
        }
        let text = this.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
        cause = this.source();
    }
    StoreError::new(kind, action, object).because(texts.join(": "))
}

fn classify(status: u16, code: &str, message: &str) -> StoreErrorKind {
    match (status, code) {
        // A missing bucket is a wrong setting, not a missing object.
        (_, "NoSuchBucket") => StoreErrorKind::Other,
        (_, "XMinioStorageFull" | "QuotaExceeded" | "XMinioAdminBucketQuotaExceeded") | (507, _) => {
            StoreErrorKind::Full
        }
        (
            _,
            "RequestTimeout"
            | "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "ConditionalRequestConflict"
            | "OperationAborted",
        ) => StoreErrorKind::Unavailable,
        (400 | 403, _) if is_lock(message) => StoreErrorKind::Locked,
        (404, _) => StoreErrorKind::NotFound,
        (412, _) => StoreErrorKind::AlreadyExists,
        (416, _) => StoreErrorKind::Truncated,
        (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken") => StoreErrorKind::Denied,
        (408 | 429 | 500 | 502 | 503 | 504, _) => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Other,
    }
}

/// Object Lock has no code of its own: Amazon answers AccessDenied, others InvalidRequest.
fn is_lock(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("object lock") || message.contains("worm protected")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_kinds() {
        use StoreErrorKind::*;
        for (status, code, message, kind) in [
            (404, "NoSuchKey", "", NotFound),
            (404, "NoSuchVersion", "", NotFound),
            (404, "", "", NotFound),
            (404, "NoSuchBucket", "", Other),
            (412, "PreconditionFailed", "", AlreadyExists),
            (409, "ConditionalRequestConflict", "", Unavailable),
            (409, "BucketAlreadyExists", "", Other),
            (403, "AccessDenied", "Access Denied", Denied),
            (403, "AccessDenied", "Access Denied because object protected by object lock.", Locked),
            (400, "InvalidRequest", "Object is WORM protected and cannot be overwritten", Locked),
            (403, "SignatureDoesNotMatch", "", Denied),
            (400, "ExpiredToken", "", Denied),
            (400, "RequestTimeout", "", Unavailable),
            (400, "InvalidArgument", "", Other),
            (416, "InvalidRange", "", Truncated),
            (503, "SlowDown", "", Unavailable),
            (500, "InternalError", "", Unavailable),
            (501, "NotImplemented", "", Other),
            (507, "XMinioStorageFull", "", Full),
        ] {
            assert_eq!(classify(status, code, message), kind, "{status} {code} {message}");
        }
    }
}
