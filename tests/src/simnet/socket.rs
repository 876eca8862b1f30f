//! quinn over turmoil: a socket of the simulated network in the shape that quinn asks for.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, UdpPoller};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How many datagrams wait to be read; the rest is lost, as on a real socket.
const QUEUE_MAX: usize = 4_096;
/// Largest datagram, in bytes.
const DATAGRAM_BYTES_MAX: usize = 2_048;

/// An endpoint on a port of the present simulated host; a free one for port 0.
pub(super) async fn endpoint(port: u16, server: Option<(EndpointConfig, ServerConfig)>) -> io::Result<Endpoint> {
    let socket = turmoil::net::UdpSocket::bind(("0.0.0.0", port)).await?;
    let socket = Arc::new(SimSocket::new(socket)?);
    let (config, server) = match server {
        Some((config, server)) => (config, Some(server)),
        None => (EndpointConfig::default(), None),
    };
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))
}

#[derive(Debug)]
struct SimSocket {
    socket: Arc<turmoil::net::UdpSocket>,
    address: SocketAddr,
    arrived: Mutex<mpsc::Receiver<(Vec<u8>, SocketAddr)>>,
    reader: JoinHandle<()>,
}

impl SimSocket {
    fn new(socket: turmoil::net::UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let socket = Arc::new(socket);
        let (queue, arrived) = mpsc::channel(QUEUE_MAX);
        let reading = socket.clone();
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            while let Ok((bytes, from)) = reading.recv_from(&mut buffer).await {
                let _ = queue.try_send((buffer[..bytes].to_vec(), from));
            }
        });
        Ok(Self { socket, address, arrived: Mutex::new(arrived), reader })
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A datagram that cannot be sent is a datagram that is lost.
        let _ = self.socket.try_send_to(transmit.contents, transmit.destination);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arrived = self.arrived.lock().expect("not poisoned");
        let Poll::Ready(next) = arrived.poll_recv(context) else { return Poll::Pending };
        let (datagram, from) = next.ok_or(io::ErrorKind::ConnectionAborted)?;
        let length = datagram.len().min(buffers[0].len());
        buffers[0][..length].copy_from_slice(&datagram[..length]);
        meta[0] = RecvMeta { addr: from, len: length, stride: length, ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
