//! The cgroups of apps, where the daemon's own cgroup is delegated to it.

use std::path::Path;

use crate::sys::cgroup::{AppCgroup, AppCgroups};

/// Where apps get cgroups of their own, and whether that was logged.
#[derive(Debug)]
pub(crate) struct CgroupsOfApps {
    found: Result<AppCgroups, String>,
    is_logged: bool,
}

impl CgroupsOfApps {
    /// Finds the cgroup that is delegated to this process.
    pub(crate) fn of_process() -> CgroupsOfApps {
        CgroupsOfApps {
            found: AppCgroups::of_process(),
            is_logged: false,
        }
    }

    /// Returns those in this directory.
    #[cfg(test)]
    pub(crate) fn below(path: &Path) -> CgroupsOfApps {
        CgroupsOfApps {
            found: AppCgroups::open(path).map_err(|e| e.to_string()),
            is_logged: false,
        }
    }

    /// Returns the directory of the cgroups, if there is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.found.as_ref().ok().map(AppCgroups::path)
    }

    /// Logs, once, whether apps have cgroups of their own.
    pub(crate) fn log(&mut self) {
        if std::mem::replace(&mut self.is_logged, true) {
            return;
        }
        match &self.found {
            Ok(cgroups) => log::info!(
                "each app has a cgroup of its own in {}",
                cgroups.path().display()
            ),
            Err(reason) => log::info!(
                "apps have no cgroups of their own: {reason}; processes that leave the process group of their app may \
                 outlive it"
            ),
        }
    }

    /// Kills everything in the cgroup of an app. Returns `None` if nothing is left of it.
    pub(super) fn kill(&self, pid: u32) -> Option<AppCgroup> {
        let cgroup = self.found.as_ref().ok()?.of_app(pid)?;
        cgroup.kill();
        Some(cgroup).filter(|cgroup| !cgroup.try_remove())
    }

    /// Kills everything in the cgroups of apps that are gone. Returns those that are not empty yet.
    pub(super) fn kill_left(&self) -> Vec<AppCgroup> {
        let cgroups = self.found.as_ref().map(AppCgroups::left);
        let mut left = cgroups.unwrap_or_default();
        left.iter().for_each(AppCgroup::kill);
        left.retain(|cgroup| !cgroup.try_remove());
        left
    }
}
