//! Telling systemd that the agent is ready, and that it is alive: as long as its engine answers (sd_notify(3)).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::engine::Input;

/// Tells that the agent is not ready yet, and why, and that it is to be waited for as long as this.
pub(crate) fn keep_waiting(why: &str, patience: Duration) {
    let patience = u32::try_from(patience.as_micros()).unwrap_or(u32::MAX);
    let _ = sd_notify::notify(&[NotifyState::Status(why), NotifyState::ExtendTimeoutUsec(patience)]);
}

/// Tells until the engine no longer answers; without systemd there is nobody to tell.
pub(crate) async fn keep_telling(inputs: mpsc::Sender<Input>) {
    // That nobody listens is fine.
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("")]);
    let Some(patience) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut tick = interval((patience / 3).max(Duration::from_millis(100)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (reply, answer) = oneshot::channel();
        if inputs.send(Input::Alive(reply)).await.is_err() {
            return;
        }
        if let Ok(Ok(())) = timeout(patience, answer).await {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}
