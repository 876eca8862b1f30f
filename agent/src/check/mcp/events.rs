//! Server-sent events (HTML, section 9.2.6), as far as MCP uses them: the data of each event.

use super::exchange::ANSWER_BYTES_MAX;
use super::fault::Fault;

/// Takes bytes in, and gives the data of every event that is whole.
#[derive(Default)]
pub(super) struct Events {
    /// The beginning of a line.
    line: Vec<u8>,
    /// The data of the event so far, and whether it has any.
    data: String,
    has_data: bool,
    /// Whether the last line ended with a carriage return, which a line feed may follow.
    after_return: bool,
}

impl Events {
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Vec<String>, Fault> {
        let mut whole = Vec::new();
        for &byte in bytes {
            let follows = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if follows => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    whole.extend(self.end_line());
                }
                byte => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > ANSWER_BYTES_MAX {
                let limit = fleetwright_deploy::limits::size(ANSWER_BYTES_MAX);
                return Err(Fault::Over(format!("sends an event of more than {limit}")));
            }
        }
        Ok(whole)
    }

    /// Takes in a line; the event's data where it is over, and has some.
    fn end_line(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.line);
        if bytes.is_empty() {
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then_some(data).filter(|data| !data.is_empty());
        }
        let line = String::from_utf8_lossy(&bytes);
        let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field == "data" {
            if self.has_data {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
            self.has_data = true;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, at_once: usize) -> Vec<String> {
        let mut events = Events::default();
        text.as_bytes().chunks(at_once).flat_map(|chunk| events.take(chunk).expect("within limits")).collect()
    }

    #[test]
    fn the_data_of_events_are_the_same_however_they_are_cut() {
        let text = ": ping\n\nevent: message\nid: 1\ndata: {\"a\":\ndata: 1}\n\ndata:x\r\n\r\ndata: y\r\rid: 5\ndata:\n\ndata: ö\n\ndata: cut";
        for at_once in [1, 2, 3, 7, 1_000] {
            assert_eq!(all(text, at_once), ["{\"a\":\n1}", "x", "y", "ö"], "{at_once}");
        }
    }

    #[test]
    fn an_event_without_end_is_not_kept() {
        let mut events = Events::default();
        assert_eq!(events.take(b"data: "), Ok(Vec::new()));
        let block = [b'x'; 64 * 1024];
        let over = (0..32).find_map(|_| events.take(&block).err()).expect("it ends");
        assert_eq!(over.words(), "sends an event of more than 1 MiB");
    }
}
