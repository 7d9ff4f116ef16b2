//! What Terraform keeps of the s3 backend's states in a DynamoDB table: an item per lock, and one per digest.
//!
//! A state `KEY` of a bucket `BUCKET` has the items `BUCKET/KEY`, with the lock's information as `Info`, and
//! `BUCKET/KEY-md5`, with the MD5 of the state in hexadecimal digits as `Digest`. Terraform reads no state whose digest is
//! another. (`internal/states/remote/…/s3/client.go` of either program.)

use super::S3;
use super::backend::{Lock, told};
use crate::source::{Context, SourceError};
use crate::store::s3::{Settings, account, failed};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::AttributeValue;
use md5::{Digest, Md5};

const ID: &str = "LockID";
const INFO: &str = "Info";
const DIGEST: &str = "Digest";

pub(super) struct Table {
    name: String,
    client: Client,
}

impl Table {
    /// The table of a backend, if it has one.
    pub fn new(context: &Context, spec: &S3, settings: &Settings) -> Result<Option<Self>, SourceError> {
        let Some(name) = spec.dynamodb_table.clone() else { return Ok(None) };
        let mut config = aws_sdk_dynamodb::config::Builder::from(&context.wait(account(settings))?);
        if let Some(endpoint) = &spec.dynamodb_endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(Some(Self { name, client: Client::from_conf(config.build()) }))
    }

    fn item(&self, id: &str) -> String {
        format!("item {id} of the DynamoDB table {}", self.name)
    }

    fn get(&self, context: &Context, id: &str, field: &str) -> Result<Option<String>, SourceError> {
        let request = self.client.get_item().table_name(&self.name).key(ID, text(id)).consistent_read(true);
        let answer = context.wait(request.send())?.map_err(|error| failed("read", self.item(id), &error))?;
        let value = answer.item().and_then(|item| item.get(field)?.as_s().ok());
        Ok(value.cloned())
    }

    pub fn holder(&self, context: &Context, state: &str) -> Result<Option<String>, SourceError> {
        Ok(self.get(context, state, INFO)?.map(|info| told(info.as_bytes())))
    }

    /// The inner error: who holds it.
    pub fn lock(&self, context: &Context, state: &str, lock: &Lock) -> Result<Result<(), String>, SourceError> {
        let info = lock.info(state).to_string();
        let request = self.client.put_item().table_name(&self.name).item(ID, text(state)).item(INFO, text(&info));
        match context.wait(request.condition_expression(format!("attribute_not_exists({ID})")).send())? {
            Ok(_) => Ok(Ok(())),
            Err(error) if error.as_service_error().is_some_and(PutItemError::is_conditional_check_failed_exception) => {
                let held = self.get(context, state, INFO)?;
                // The client tries again when an answer is lost on its way.
                if held.as_ref() == Some(&info) {
                    return Ok(Ok(()));
                }
                Ok(Err(held.map_or_else(|| "somebody".into(), |held| told(held.as_bytes()))))
            }
            Err(error) => Err(failed("lock", self.item(state), &error).into()),
        }
    }

    /// Whoever else holds it goes on holding it.
    pub fn unlock(&self, context: &Context, state: &str, lock: &Lock) -> Result<(), SourceError> {
        let request = self.client.delete_item().table_name(&self.name).key(ID, text(state));
        let request = request.condition_expression(format!("{INFO} = :info"));
        let info = text(&lock.info(state).to_string());
        match context.wait(request.expression_attribute_values(":info", info).send())? {
            Err(error)
                if error.as_service_error().is_some_and(DeleteItemError::is_conditional_check_failed_exception) =>
            {
                Ok(())
            }
            answer => answer.map(|_| ()).map_err(|error| failed("remove", self.item(state), &error).into()),
        }
    }

    /// Whether Terraform would take those bytes for the state.
    pub fn agrees(&self, context: &Context, state: &str, bytes: &[u8]) -> Result<bool, SourceError> {
        let digest = self.get(context, &digest_of(state), DIGEST)?;
        Ok(digest.is_none_or(|digest| digest == md5(bytes)))
    }

    pub fn note(&self, context: &Context, state: &str, bytes: &[u8]) -> Result<(), SourceError> {
        let id = digest_of(state);
        let request = self.client.put_item().table_name(&self.name).item(ID, text(&id));
        let answer = context.wait(request.item(DIGEST, text(&md5(bytes))).send())?;
        answer.map(|_| ()).map_err(|error| failed("write", self.item(&id), &error).into())
    }
}

fn digest_of(state: &str) -> String {
    format!("{state}-md5")
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
