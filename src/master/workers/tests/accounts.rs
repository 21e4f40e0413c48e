//! The accounts of what workers write: only workers with Unix clients have one.

use std::os::unix::net::UnixStream;

use crate::config::Dispatch;
use crate::master::clients::client::{Client, Unleased};
use crate::master::workers::tests::simulation::Simulation;
use crate::master::workers::write_account::WriteAccount;
use crate::proto::names::{Peer, WorkerId};

impl Simulation {
    /// Leases a new client to a worker that is chosen for it.
    fn lease_new(&mut self, client: Client) -> WorkerId {
        let dispatcher = &mut self.clients.dispatcher;
        self.workers.begin_leasing(dispatcher.policy());
        let chosen = self.workers.pick_for_new(dispatcher);
        let chosen = chosen.expect("one has capacity");
        self.clients.add(1);
        let (clients, telemetry) = (&mut self.clients, &mut self.telemetry);
        let unleased = Unleased::new(client, 0);
        self.workers.lease_new(chosen, unleased, clients, telemetry);
        chosen
    }

    /// Returns the workers whose accounts are open.
    fn accounts(&self) -> Vec<WorkerId> {
        let workers = self.workers.all.values();
        let open = workers.filter(|worker| worker.writes.is_open());
        open.map(|worker| worker.id).collect()
    }
}

#[test]
fn an_account_is_opened_for_the_first_unix_client() {
    let mut simulation = Simulation::new(Dispatch::RoundRobin, 3, 9);
    simulation.connect(4);
    assert_eq!(simulation.accounts(), []);
    let (socket, _other) = UnixStream::pair().expect("socketpair");
    let with_unix = simulation.lease_new(Client::with_socket(9, socket, Peer::UNIX));
    assert_eq!(simulation.accounts(), [with_unix]);
    let worker = &simulation.workers.all[&with_unix];
    worker.shm.header().set_writer(std::process::id());
    assert!(worker.writes.total(worker.shm.header()).is_some());
    let mut others = simulation.workers.all.values();
    let other = others
        .find(|worker| worker.id != with_unix)
        .expect("there are three");
    other.shm.header().set_writer(std::process::id());
    assert_eq!(
        other.writes.total(other.shm.header()),
        None,
        "it is not needed"
    );
}

/// The account of a process that has ended before the lease was made may not be there. The process has not seen the
/// client.
#[test]
fn a_unix_client_of_a_process_that_had_ended_needs_no_account() {
    let mut simulation = Simulation::new(Dispatch::RoundRobin, 2, 9);
    let first = simulation.workers.ids()[0];
    let ended = simulation.workers.all.get_mut(&first).expect("it is ready");
    // No process has this number.
    ended.writes = WriteAccount::new(u32::MAX);
    let (socket, _other) = UnixStream::pair().expect("socketpair");
    let leased_to = simulation.lease_new(Client::with_socket(9, socket, Peer::UNIX));
    assert_eq!((leased_to, simulation.accounts()), (first, vec![]));
    let ended = &simulation.workers.all[&first];
    assert_eq!(ended.writes.total(ended.shm.header()), None);
    assert_eq!(simulation.kill(), 1, "it moves");
    assert_eq!(simulation.clients.count(), 1);
}
