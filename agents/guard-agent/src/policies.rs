//! Cedar policies, and what they say.

use std::collections::HashSet;

use cedar_policy::{
    Authorizer, Context, Decision as CedarDecision, Entities, EntityId, EntityTypeName, EntityUid, Policy, PolicyId,
    PolicySet, Request, Schema, Template, ValidationMode, Validator,
};
use guard_client::{Decision, Question, Verdict};
use serde_json::Value;

use crate::bundle::{Bundle, ENTITIES, SCHEMA, SCHEMA_JSON};

/// Where in a question's context policies find who asks: `namespace` and `pod`, as the broker knows them.
pub const ASKER: &str = "podshm";

/// The entity type of pods.
pub const POD: &str = "Pod";

/// What is wrong with policies, schema or entities.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// There are none.
    #[error(
        "no policy: expected at least one in *.cedar, found {files} files and none; to deny everything, say so in a policy"
    )]
    None {
        /// How many files there were.
        files: usize,
    },
    /// A file that can't be parsed.
    #[error("{file}: {fault}")]
    Parse {
        /// Which.
        file: String,
        /// What is wrong, and where.
        fault: String,
    },
    /// Two policies of one id.
    #[error("{file}: another policy has the id {id:?}; give this one another by @id")]
    Twice {
        /// Which file.
        file: String,
        /// The id.
        id: String,
    },
    /// Two schemas.
    #[error("{SCHEMA} and {SCHEMA_JSON} are both there: expected one of them")]
    TwoSchemas,
    /// Policies that the schema does not allow.
    #[error("the policies don't go with the schema: {faults}")]
    Invalid {
        /// What is wrong with which.
        faults: String,
    },
}

/// A set of policies with its schema and entities, as one: replaced whole.
#[derive(Debug)]
pub struct Policies {
    policies: PolicySet,
    schema: Option<Schema>,
    entities: Entities,
    authorizer: Authorizer,
    /// The type of who asks, where no principal is named.
    pod: EntityTypeName,
    fingerprint: u64,
    count: usize,
    warnings: Vec<String>,
}

impl Policies {
    /// All that a bundle has, checked against its schema where it has one.
    pub fn parse(bundle: &Bundle) -> Result<Self, PolicyError> {
        let schema = schema(bundle)?;
        let policies = policy_set(bundle)?;
        let count = policies.policies().count();
        if count == 0 {
            return Err(PolicyError::None { files: bundle.files.len() });
        }
        let mut warnings = Vec::new();
        if let Some(schema) = &schema {
            let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
            if !result.validation_passed() {
                return Err(PolicyError::Invalid { faults: joined(result.validation_errors()) });
            }
            warnings.extend(result.validation_warnings().map(ToString::to_string));
        }
        let entities = match bundle.files.get(ENTITIES) {
            Some(text) => Entities::from_json_str(text, schema.as_ref()).map_err(|e| parse(ENTITIES, &e))?,
            None => Entities::empty(),
        };
        let fingerprint = bundle.fingerprint();
        let pod = POD.parse().map_err(|e| parse(POD, &e))?;
        Ok(Self { policies, schema, entities, authorizer: Authorizer::new(), pod, fingerprint, count, warnings })
    }

    /// Decides a question of `member`, `namespace/pod`. Says why where it can't be decided.
    pub fn decide(&self, question: &Question<'_>, member: &str) -> Result<Verdict, String> {
        let (namespace, pod) = member.split_once('/').unwrap_or(("", member));
        let principal = match question.principal {
            "" => EntityUid::from_type_name_and_id(self.pod.clone(), EntityId::new(member)),
            named => uid("principal", named)?,
        };
        let (action, resource) = (uid("action", question.action)?, uid("resource", question.resource)?);
        let mut context = match question.context {
            "" => serde_json::Map::new(),
            text => match serde_json::from_str(text).map_err(|e| format!("context: {e}"))? {
                Value::Object(fields) => fields,
                _ => return Err("context: expected a JSON object, found something else".into()),
            },
        };
        if context.contains_key(ASKER) {
            return Err(format!("context: {ASKER:?} is who asks, which the agent adds; leave it out"));
        }
        context.insert(ASKER.into(), serde_json::json!({ "namespace": namespace, "pod": pod }));
        let typed = self.schema.as_ref().map(|schema| (schema, &action));
        let context =
            Context::from_json_value(Value::Object(context), typed).map_err(|e| format!("context: {}", whole(&e)))?;
        let request =
            Request::new(principal, action, resource, context, self.schema.as_ref()).map_err(|e| whole(&e))?;
        let response = self.authorizer.is_authorized(&request, &self.policies, &self.entities);
        let mut reasons: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        let mut errors: Vec<String> = response.diagnostics().errors().map(|e| whole(e)).collect();
        reasons.sort_unstable();
        errors.sort_unstable();
        let decision = match response.decision() {
            CedarDecision::Allow => Decision::Allow,
            CedarDecision::Deny => Decision::Deny,
        };
        Ok(Verdict { decision, policies: self.fingerprint, reasons, errors })
    }

    /// Of the bundle that it was made of.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// How many policies.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What the schema's checks found doubtful.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

fn schema(bundle: &Bundle) -> Result<Option<Schema>, PolicyError> {
    match (bundle.files.get(SCHEMA), bundle.files.get(SCHEMA_JSON)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(PolicyError::TwoSchemas),
        (Some(text), None) => {
            let (schema, _) = Schema::from_cedarschema_str(text).map_err(|e| parse(SCHEMA, &e))?;
            Ok(Some(schema))
        }
        (None, Some(text)) => Ok(Some(Schema::from_json_str(text).map_err(|e| parse(SCHEMA_JSON, &e))?)),
    }
}

/// All files as one set. A policy's id is what it says by `@id("…")`, or else its file and its number in there.
fn policy_set(bundle: &Bundle) -> Result<PolicySet, PolicyError> {
    let (mut all, mut ids) = (PolicySet::new(), HashSet::new());
    for (file, text) in bundle.files.iter().filter(|(name, _)| name.ends_with(".cedar")) {
        let set: PolicySet = text.parse().map_err(|e| parse(file, &e))?;
        let mut name = |annotated: Option<&str>, numbered: String| {
            let id = match annotated {
                Some(id) => id.to_owned(),
                None => format!("{}#{}", file.trim_end_matches(".cedar"), numbered.trim_start_matches("policy")),
            };
            match ids.insert(id.clone()) {
                // In a verdict, ids are lines.
                true if !id.contains('\n') => Ok(PolicyId::new(id)),
                _ => Err(PolicyError::Twice { file: file.clone(), id }),
            }
        };
        let policies: Vec<Policy> = set.policies().cloned().collect();
        for policy in policies {
            let id = name(policy.annotation("id"), policy.id().to_string())?;
            all.add(policy.new_id(id)).map_err(|e| parse(file, &e))?;
        }
        let templates: Vec<Template> = set.templates().cloned().collect();
        for template in templates {
            let id = name(template.annotation("id"), template.id().to_string())?;
            all.add_template(template.new_id(id)).map_err(|e| parse(file, &e))?;
        }
    }
    Ok(all)
}

fn uid(what: &str, text: &str) -> Result<EntityUid, String> {
    text.parse().map_err(|e| format!("{what}: expected the like of User::\"alice\": {}", whole(&e)))
}

fn parse(file: &str, error: &dyn std::error::Error) -> PolicyError {
    PolicyError::Parse { file: file.to_owned(), fault: whole(error) }
}

/// An error and what is behind it, in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text.replace('\n', " ")
}

fn joined<T: ToString>(faults: impl Iterator<Item = T>) -> String {
    faults.map(|fault| fault.to_string()).collect::<Vec<_>>().join("; ")
}
