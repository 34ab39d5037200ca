-- Whether the client of the present request has gone.
--
-- lua_check_client_abort waits for the next event of the connection. If the client left before nginx had read its whole
-- body, that event came together with the last bytes, and no other one comes. ngx_lua has no question for it, so the
-- socket itself is asked. Its number is in nginx's structures, whose first fields are the same in all versions.
local ffi = require "ffi"
local get_request = require("resty.core.base").get_request

local client = {}

ffi.cdef [[
typedef struct { void *data; void *read; void *write; int socket; } qwen_connection;
typedef struct { uint32_t signature; qwen_connection *connection; } qwen_request;
long recv(int socket, void *buffer, size_t length, int flags);
]]

-- "HTTP", as nginx marks a request.
local SIGNATURE = 0x50545448
local PEEK, DONT_WAIT = 2, 64

local buffer = ffi.new("char[1]")

-- Call it when the body was read: what the client sends later causes an event.
function client.has_gone()
    local request = ffi.cast("qwen_request *", get_request())
    if request.signature ~= SIGNATURE then
        return false
    end
    return ffi.C.recv(request.connection.socket, buffer, 1, PEEK + DONT_WAIT) == 0
end

return client
