//! What the profile wants of a pair, as the pair's configuration says it (`ha:` of the profile).
//!
//! Pure: values from values. The third voter is no address alone: it comes with the request, which names its key.

use anyhow::{Context, Result};
use formats::device::{HaSettings, OnPeerLoss};
use formats::pairing::Role;
use serde_json::{Value, json};

/// Puts the profile's wishes into the configuration of the node with this role and host name; what stands there already stays.
///
/// # Errors
/// If the profile's address is none.
pub fn apply(config: &mut Value, wanted: &HaSettings, role: Role, host: &str) -> Result<()> {
    if let OnPeerLoss::Prefer(name) = &wanted.on_peer_loss
        && config.get("witness").is_none()
        && config.get("on_peer_loss").is_none()
    {
        let this = match name.as_str() {
            "first" => role == Role::First,
            "second" => role == Role::Second,
            name => name == host,
        };
        config["on_peer_loss"] = json!(if this { "prefer-this" } else { "prefer-peer" });
    }
    if let Some(text) = wanted.virtual_ip.as_ref().filter(|_| config.get("address").is_none()) {
        let (ip, prefix) = formats::device::virtual_ip(text).with_context(|| {
            format!("the profile's ha.virtual_ip is {text:?}, but must be as 192.0.2.10/24")
        })?;
        config["address"] = json!({ "ip": ip, "prefix": prefix });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(mut config: Value, on_peer_loss: OnPeerLoss, virtual_ip: Option<&str>, role: Role) -> Value {
        let witness = (on_peer_loss == OnPeerLoss::Witness).then(|| "witness.example.net:7445".to_owned());
        let wanted = HaSettings { on_peer_loss, witness, virtual_ip: virtual_ip.map(str::to_owned) };
        apply(&mut config, &wanted, role, "node-1").unwrap();
        config
    }

    #[test]
    fn the_preferred_node_is_named_by_its_role_or_its_host() {
        let prefer = |name: &str| OnPeerLoss::Prefer(name.to_owned());
        for (name, role, policy) in [
            ("first", Role::First, "prefer-this"),
            ("first", Role::Second, "prefer-peer"),
            ("second", Role::First, "prefer-peer"),
            ("second", Role::Second, "prefer-this"),
            ("node-1", Role::Second, "prefer-this"),
            ("node-2", Role::First, "prefer-peer"),
        ] {
            assert_eq!(
                applied(json!({}), prefer(name), None, role)["on_peer_loss"],
                policy,
                "{name} {role:?}"
            );
        }
        // An operator who named a witness has decided.
        let witness = json!({ "witness": {} });
        assert_eq!(applied(witness.clone(), prefer("first"), None, Role::First), witness);
        for policy in [OnPeerLoss::Hold, OnPeerLoss::Witness] {
            assert_eq!(applied(json!({}), policy, None, Role::First), json!({}));
        }
    }

    #[test]
    fn the_address_is_the_profiles_unless_the_image_has_one() {
        let ip = Some("192.0.2.10/24");
        let given = applied(json!({}), OnPeerLoss::Witness, ip, Role::First);
        assert_eq!(given, json!({ "address": { "ip": "192.0.2.10", "prefix": 24 } }));
        let own = json!({ "address": { "ip": "192.0.2.11", "prefix": 25, "interface": "eth1" } });
        assert_eq!(applied(own.clone(), OnPeerLoss::Hold, ip, Role::Second), own);
        let wrong =
            HaSettings { on_peer_loss: OnPeerLoss::Hold, witness: None, virtual_ip: Some("no".into()) };
        let said = apply(&mut json!({}), &wrong, Role::First, "").unwrap_err().to_string();
        assert!(said.contains("ha.virtual_ip") && said.contains("192.0.2.10/24"), "{said}");
    }
}
