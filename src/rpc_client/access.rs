//! The users that the kernel lets connect to a Unix socket, for the message to a user that it does not let.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns a sentence that names the users who may connect to the socket at `path`, as far as modes show it: connecting
/// requires permission to write to the socket, and to search the directories in its path (unix(7)).
pub(super) fn describe_permission(path: &Path) -> String {
    // If the metadata of the path cannot be read, it is in a directory that may not be searched: the first readable
    // one.
    let barrier = path
        .ancestors()
        .find_map(|place| Some((place, fs::metadata(place).ok()?)));
    let shown = path.display();
    match barrier.and_then(|(place, found)| Some((place, permitted(&found)?))) {
        Some((place, who)) if place == path => format!("{shown} is for {who}"),
        Some((directory, who)) => {
            format!("{shown} is in {}, which is for {who}", directory.display())
        }
        // An access control list, a security module, a mount.
        None => format!("you may not connect to {shown}"),
    }
}

/// Returns the users with access by the mode of a socket or a directory; none if all have it.
fn permitted(found: &Metadata) -> Option<String> {
    const WRITE: u32 = 0o2;
    const SEARCH: u32 = 0o1;
    let wanted = if found.is_dir() { SEARCH } else { WRITE };
    let [owners, groups, others] = [6, 3, 0].map(|shift| found.mode() >> shift & wanted != 0);
    if others {
        return None;
    }
    let owner = (owners && found.uid() != 0).then(|| name("/etc/passwd", found.uid(), "uid "));
    let group = groups.then(|| format!("the group {}", name("/etc/group", found.gid(), "")));
    Some(match (owner, group) {
        (None, None) => "root only".to_owned(),
        (Some(one), None) | (None, Some(one)) => format!("root and {one}"),
        (Some(owner), Some(group)) => format!("root, {owner} and {group}"),
    })
}

/// Returns the name of a number by passwd(5) or group(5), or else the number, after this word. Names that only a
/// directory server knows are not looked up.
fn name(database: &str, id: u32, word: &str) -> String {
    let entries = fs::read_to_string(database).unwrap_or_default();
    let name_of = |entry: &str| {
        let mut fields = entry.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    };
    entries
        .lines()
        .find_map(name_of)
        .unwrap_or_else(|| format!("{word}{id}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn the_permission_follows_the_modes_of_the_path() {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join("control.sock");
        fs::write(&file, "").expect("it is ours");
        let (own, group) = (
            fs::metadata(&file).expect("it is there"),
            "the group 3999999999",
        );
        let is_root = own.uid() == 0;
        if is_root {
            chown(&file, Some(3_999_999_998), Some(3_999_999_999)).expect("we are root");
        }
        let said = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("it is ours");
            let said = describe_permission(&file);
            said.strip_prefix(&format!("{} is for ", file.display()))
                .map(str::to_owned)
                .ok_or(said)
        };
        if is_root {
            assert_eq!(said(0o660), Ok(format!("root, uid 3999999998 and {group}")));
            assert_eq!(said(0o620), said(0o660));
            assert_eq!(said(0o640), Ok("root and uid 3999999998".to_owned()));
            assert_eq!(said(0o460), Ok(format!("root and {group}")));
        }
        assert_eq!(said(0o444), Ok("root only".to_owned()));
        assert_eq!(
            said(0o666),
            Err(format!("you may not connect to {}", file.display()))
        );
        // All other users get ENOENT for everything in it.
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
        let hidden = place.path().join("hidden.sock");
        let sentence = format!(
            "{} is in {}, which is for root",
            hidden.display(),
            place.path().display()
        );
        assert!(
            describe_permission(&hidden).starts_with(&sentence),
            "{}",
            describe_permission(&hidden)
        );
    }

    #[test]
    fn numbers_have_their_names_in_the_databases() {
        let place = tempfile::NamedTempFile::new().expect("a file");
        fs::write(place.path(), "broken\nroot:x:0:\nops:x:17:a,b\n+:::\n").expect("it is ours");
        let database = place.path().to_str().expect("UTF-8");
        assert_eq!(name(database, 17, "uid "), "ops");
        assert_eq!(name(database, 18, "uid "), "uid 18");
        assert_eq!(name("/nowhere", 0, ""), "0");
    }
}
