-- Roles and database for Keyfold. Run once as a superuser, with psql:
--
--   psql --set ON_ERROR_STOP=1 --file deploy/postgres.sql
--   \password keyfold_owner
--   \password keyfold_server

-- Owns the schema and changes it: `keyfold-server migrate` alone uses it.
CREATE ROLE keyfold_owner LOGIN;
-- What the server serves with. It owns nothing, so it can neither change tables nor switch triggers off: those that
-- keep audit entries from being changed bind it.
CREATE ROLE keyfold_server LOGIN;

CREATE DATABASE keyfold OWNER keyfold_owner TEMPLATE template0 ENCODING 'UTF8';
\connect keyfold
REVOKE ALL ON DATABASE keyfold FROM PUBLIC;
GRANT CONNECT ON DATABASE keyfold TO keyfold_server;
GRANT USAGE ON SCHEMA public TO keyfold_server;
-- Tables do not exist yet: this covers those that migrations create.
ALTER DEFAULT PRIVILEGES FOR ROLE keyfold_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO keyfold_server;
