//! The arguments that ps(1) shows: /proc/PID/cmdline (proc_pid_cmdline(5)).

use std::ptr;

use nix::libc;

use super::proc_files::stat;

/// The memory with the arguments of this process.
///
/// A program that changes them is executed with as many bytes of arguments as it will need.
#[derive(Debug)]
pub struct ProcessTitle {
    memory: MemoryMap,
    /// The length of the memory, in bytes.
    length: usize,
}

/// `struct prctl_mm_map` of linux/prctl.h.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: *mut u64,
    auxv_size: u32,
    exe_fd: u32,
}

impl ProcessTitle {
    /// Finds the arguments by /proc/self/stat.
    #[must_use]
    pub fn find() -> Option<ProcessTitle> {
        let stat = stat("self")?;
        // proc_pid_stat(5) counts from 1, and this text begins with the third field.
        let field = |number: usize| stat.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
        let memory = MemoryMap {
            start_code: field(26)?,
            end_code: field(27)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            brk: 0,
            start_stack: field(28)?,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            auxv: ptr::null_mut(),
            auxv_size: 0,
            exe_fd: u32::MAX,
        };
        let length = memory.arg_end.checked_sub(memory.arg_start)?;
        let length = usize::try_from(length)
            .ok()
            .filter(|_| memory.arg_start > 0)?;
        Some(ProcessTitle { memory, length })
    }

    /// Replaces the arguments. Does nothing if they are longer than those with which this process was executed.
    ///
    /// The process must have one thread.
    pub fn set(&mut self, arguments: &[&str]) {
        let mut text: Vec<u8> = Vec::with_capacity(self.length);
        for argument in arguments {
            text.extend(argument.bytes().filter(|byte| *byte != 0));
            text.push(0);
        }
        let used = text.len();
        if used > self.length {
            return;
        }
        text.resize(self.length, 0);
        let start = ptr::with_exposed_provenance_mut::<u8>(self.memory.arg_start as usize);
        // SAFETY: the kernel has put the arguments there, on the stack, before this program ran. They stay as long as
        // the process, are writable, and end with a zero byte before and after this. No other thread reads them.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), start, self.length) };
        self.set_end(used);
    }

    /// Has the kernel show only these many bytes. Otherwise empty arguments follow, which ps(1) shows as spaces.
    fn set_end(&mut self, used: usize) {
        // SAFETY: it returns the present end of the heap.
        let brk = unsafe { libc::sbrk(0) };
        let memory = MemoryMap {
            brk: brk.expose_provenance() as u64,
            arg_end: self.memory.arg_start + used as u64,
            ..self.memory
        };
        // SAFETY: the kernel reads the record of this length. It has the addresses that the kernel itself has reported,
        // and none of them changes except the end of the arguments. It fails without CONFIG_CHECKPOINT_RESTORE.
        unsafe {
            libc::prctl(
                libc::PR_SET_MM,
                libc::PR_SET_MM_MAP,
                &raw const memory,
                size_of::<MemoryMap>(),
                0,
            )
        };
    }
}
