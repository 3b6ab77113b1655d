//! The least that a server can do: it writes what it is given to every member of a room. A process
//! of its own, this program started with [`ARGUMENT`].

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use postern::connection::socket::text_frame;
use tokio::io::AsyncWriteExt;

use crate::socket::Client;

/// Makes this program the server.
pub(crate) const ARGUMENT: &str = "--floor";
/// What the publisher says in place of its room.
const PUBLISHER: u32 = u32::MAX;

/// The running server; killed when dropped.
pub(crate) struct Floor {
    child: Child,
    address: SocketAddr,
}

impl Floor {
    pub(crate) fn start() -> Floor {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program).arg(ARGUMENT).stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("its port");
        let port = line.trim().parse().expect("a port");
        Floor { child, address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) async fn member(&self, room: usize) -> Client {
        self.connect(u32::try_from(room).expect("few rooms")).await
    }

    /// After the last member.
    pub(crate) async fn publisher(&self) -> Client {
        self.connect(PUBLISHER).await
    }

    async fn connect(&self, says: u32) -> Client {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.expect("the server accepts");
        stream.write_all(&says.to_le_bytes()).await.expect("the room is sent");
        Client::of(stream, Vec::new(), 0)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the server write a text message to a room.
pub(crate) async fn publish(publisher: &mut Client, room: usize, text: &str) {
    let frame = text_frame(text);
    let mut order = Vec::with_capacity(frame.len() + 8);
    order.extend_from_slice(&u32::try_from(room).expect("few rooms").to_le_bytes());
    order.extend_from_slice(&u32::try_from(frame.len()).expect("a short frame").to_le_bytes());
    order.extend_from_slice(&frame);
    publisher.writer.write_all(&order).await.expect("the server runs");
}

/// Takes members until the publisher comes, then does what it says until it goes.
pub(crate) fn serve() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    println!("{}", listener.local_addr().expect("an address").port());
    let mut rooms: Vec<Vec<TcpStream>> = Vec::new();
    let mut publisher = loop {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_nodelay(true).expect("an option");
        match number(&mut stream) {
            Some(PUBLISHER) => break stream,
            Some(room) => {
                let room = room as usize;
                rooms.resize_with(rooms.len().max(room + 1), Vec::new);
                stream.set_nonblocking(true).expect("an option");
                rooms[room].push(stream);
            }
            None => return,
        }
    };
    let mut frame = Vec::new();
    while let (Some(room), Some(length)) = (number(&mut publisher), number(&mut publisher)) {
        frame.resize(length as usize, 0);
        publisher.read_exact(&mut frame).expect("a whole frame");
        for member in &mut rooms[room as usize] {
            let written = member.write(&frame).expect("a member that reads");
            assert_eq!(written, frame.len(), "a member that reads too slowly");
        }
    }
}

fn number(stream: &mut TcpStream) -> Option<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).ok()?;
    Some(u32::from_le_bytes(bytes))
}
