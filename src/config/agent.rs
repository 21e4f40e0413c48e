//! `[agent]`: agent checks of load balancers.

use serde::{Deserialize, Serialize};

use super::notation::Given;
use crate::proto::names::Address;

/// `[agent]`: agent checks of load balancers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentConfig {
    /// The address; `None`, the default, disables them.
    #[serde(with = "Given::<Address>")]
    pub listen: Option<Address>,
}
