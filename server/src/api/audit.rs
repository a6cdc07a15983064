//! `AuditService`.

use keyfold_proto::keyfold::v1::{
    AuditEntry, ListEntriesRequest, ListEntriesResponse, Outcome, audit_service_server::AuditService,
};
use tonic::{Request, Response, Status};

use super::{Api, time};
use crate::{
    error::Error,
    store::audit::{Filter, StoredEntry},
};

/// Entries on a page when the caller does not say.
const PAGE_DEFAULT: u32 = 100;

#[tonic::async_trait]
impl AuditService for Api {
    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        self.answer("ListEntries", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let limit = if message.page_size == 0 { PAGE_DEFAULT } else { message.page_size };
            let entries = self.broker.audit_entries(&call, &filter(message)?, limit).await?;
            Ok(ListEntriesResponse { entries: entries.into_iter().map(entry).collect() })
        })
        .await
    }
}

fn filter(message: ListEntriesRequest) -> Result<Filter, Error> {
    let outcome = match message.outcome() {
        Outcome::Unspecified => None,
        Outcome::Allowed => Some("allowed".to_owned()),
        Outcome::Refused => Some("refused".to_owned()),
    };
    let text = |text: String| (!text.is_empty()).then_some(text);
    Ok(Filter {
        operation: text(message.operation),
        actor: text(message.actor),
        path: text(message.path),
        outcome,
        since: time("since", message.since)?,
        until: time("until", message.until)?,
        before_index: match message.before_index {
            0 => None,
            index => Some(
                i64::try_from(index).map_err(|_| Error::Invalid("before_index is out of range".into()))?,
            ),
        },
    })
}

fn entry(row: StoredEntry) -> AuditEntry {
    AuditEntry {
        index: u64::try_from(row.index).unwrap_or_default(),
        leaf_hash: row.leaf_hash,
        entry: row.entry,
    }
}
