-- Leases: how long pods have had secrets under app roles that limit it.

CREATE TABLE leases (
    issuer_id  uuid NOT NULL REFERENCES objects (id) ON DELETE CASCADE,
    pod_uid    text NOT NULL CHECK (octet_length(pod_uid) <= 256),
    role_id    uuid NOT NULL REFERENCES objects (id) ON DELETE CASCADE,
    started_at timestamptz NOT NULL,
    forget_on  date NOT NULL,
    PRIMARY KEY (issuer_id, pod_uid, role_id)
);
-- For what the referenced objects' end takes along, and for what is forgotten.
CREATE INDEX leases_by_role ON leases (role_id);
CREATE INDEX leases_by_forgetting ON leases (forget_on);
COMMENT ON TABLE leases IS 'When pods had their first secrets under app roles that limit how long they have them.';
COMMENT ON COLUMN leases.issuer_id IS 'The issuer object of the pod''s cluster. Immutable, clear.';
COMMENT ON COLUMN leases.pod_uid IS 'The pod, from its verified token. Immutable, clear.';
COMMENT ON COLUMN leases.role_id IS 'The app role. Immutable, clear.';
COMMENT ON COLUMN leases.started_at IS 'When the pod first had secrets under the role: what its limit counts from. Immutable, clear.';
COMMENT ON COLUMN leases.forget_on IS 'When the row may go, unless the pod asks again. A day, not a moment, so that renewals leave indexes alone. Mutable, clear.';
