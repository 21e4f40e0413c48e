//! The error of an app, as its caller gets it.

use crate::proto::app::{AppError, AppFault};
use crate::proto::rpc::{Code, is_fault_code};
use crate::worker::reply::Fault;

/// Returns the fault that a caller gets if an app has no result.
pub(in crate::worker) fn fault_of(error: AppError) -> Fault {
    match error {
        AppError::Malformed(reason) => Fault::from_code(Code::Internal, reason),
        AppError::Fault(fault) => permitted(&fault),
    }
}

/// Returns the fault that a caller gets for an error of an app. The daemon's own codes are not the app's, except those
/// that a method has a use for.
fn permitted(fault: &AppFault) -> Fault {
    let code = &fault.code;
    let is_allowed = [Code::BadParams, Code::Internal, Code::Crashed]
        .iter()
        .any(|allowed| allowed.as_str() == code);
    let is_reserved = Code::ALL.iter().any(|own| own.as_str() == code);
    if !is_fault_code(code) {
        let message = format!("the app's error has no valid code: {code:?}");
        return Fault::from_code(Code::Internal, message);
    }
    if is_reserved && !is_allowed {
        let message = format!(
            "the app's error has the daemon's code {code:?}: {}",
            fault.message
        );
        return Fault::from_code(Code::Internal, message);
    }
    Fault::new(code.clone(), fault.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_has_its_own_codes_and_three_of_the_daemon() {
        let code = |code: &str| {
            let fault = AppFault {
                code: code.to_owned(),
                message: "m".to_owned(),
            };
            permitted(&fault).code().to_owned()
        };
        for allowed in ["no_such_item", "bad_params", "internal", "crashed"] {
            assert_eq!(code(allowed), allowed);
        }
        for other in [
            "timeout",
            "overloaded",
            "shutting_down",
            "",
            "No",
            "a b",
            "a\n",
        ] {
            assert_eq!(code(other), "internal", "{other}");
        }
    }
}
