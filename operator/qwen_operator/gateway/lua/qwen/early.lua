-- The head of an answer before there is an answer.
--
-- Many proxies and load balancers cut a connection on which nothing comes for a minute. So a stream whose model has no
-- replica for longer gets its head and then comments, which every reader of event streams skips. What follows passes
-- through here and not through nginx's own proxy, which has no way to go on with an answer that has begun. Only
-- these streams pay for that.
local answers = require "qwen.answers"
local body = require "qwen.body"
local state = require "qwen.state"
local usage = require "qwen.usage"

local early = {}

local BEAT_SECONDS = 10
local PIECE_BYTES = 16384
-- Of an answer that is an error.
local ERROR_BYTES = 16384
local LINE_BYTES = 8192
local CONNECT_SECONDS, SEND_SECONDS = 5, 60

local function say(text)
    ngx.print(text)
    if not ngx.flush(true) then
        -- The client has gone.
        return ngx.exit(499)
    end
end

-- At every step of a wait. `ticket.began`: when it first waited. The router may have given it back since.
function early.beat(ticket)
    local seconds, now = state.relay.head_seconds, ngx.now()
    if not ticket.stream or seconds == 0 then
        return
    end
    if not ticket.head then
        if now - ticket.began < seconds then
            return
        end
        ticket.head, ticket.beat = true, now
        ngx.ctx.own_answer = true
        ngx.header["Content-Type"] = "text/event-stream"
        say(": the request waits for a replica\n\n")
    elseif now - ticket.beat >= BEAT_SECONDS then
        ticket.beat = now
        say(": the request waits for a replica\n\n")
    end
end

local function failed(socket)
    socket:close()
    return answers.no_router()
end

local function send_body(socket)
    local file = body.open()
    if not file then
        return socket:send(ngx.req.get_body_data() or "")
    end
    local sent, piece = true, file:read(PIECE_BYTES)
    while sent and piece do
        sent, piece = socket:send(piece), file:read(PIECE_BYTES)
    end
    body.close()
    return sent
end

local function send(socket, ticket)
    local lines = {
        "POST " .. ngx.var.uri .. " HTTP/1.1",
        "Host: router",
        "Connection: close",
        "Content-Type: application/json",
        "Content-Length: " .. body.bytes(),
        state.relay.tenant_header .. ": " .. ticket.tenant,
    }
    for _, name in ipairs(state.relay.passed_on) do
        -- ngx.req.get_headers() has the first hundred alone.
        local value = ngx.var["http_" .. name:gsub("-", "_")]
        if value and value ~= "" then
            lines[#lines + 1] = name .. ": " .. value
        end
    end
    return socket:send(table.concat(lines, "\r\n") .. "\r\n\r\n") and send_body(socket)
end

local function line_of(socket)
    local line = socket:receive("*l")
    return line and #line <= LINE_BYTES and line or nil
end

-- The status, and the headers by their names in lower case; nil if the relay's answer breaks off.
local function read_head(socket)
    local first = line_of(socket)
    local status = first and tonumber(first:match("^HTTP/1%.1 (%d%d%d)"))
    local headers, line = {}, status and line_of(socket)
    while line and line ~= "" do
        local name, value = line:match("^([^:]+):%s*(.-)%s*$")
        if name then
            headers[name:lower()] = value
        end
        line = line_of(socket)
    end
    return line and status, headers
end

-- Calls `take` with each part of a body. Returns whether it came to its end.
local function read_body(socket, headers, take)
    local chunked = (headers["transfer-encoding"] or ""):lower() == "chunked"
    local left = chunked and 0 or tonumber(headers["content-length"]) or math.huge
    while chunked or left > 0 do
        if left == 0 then
            local line = line_of(socket)
            left = line and tonumber(line:match("^%x+") or "", 16)
            if not left or left == 0 then
                return left == 0
            end
        end
        local piece, problem = socket:receiveany(math.min(left, PIECE_BYTES))
        if not piece then
            return problem == "closed" and left == math.huge
        end
        left = left - #piece
        take(piece)
        if chunked and left == 0 and not line_of(socket) then
            return false
        end
    end
    return true
end

local function refused(socket, status, headers)
    local parts, size = {}, 0
    read_body(socket, headers, function(piece)
        if size < ERROR_BYTES then
            parts[#parts + 1], size = piece, size + #piece
        end
    end)
    socket:close()
    return answers.pass_on(status, table.concat(parts):sub(1, ERROR_BYTES))
end

-- Sends the request to the relay and its answer to the client. Returns the location in which the request goes on if the
-- router gave it back; otherwise the request ends here.
function early.answer(ticket)
    local socket = ngx.socket.tcp()
    socket:settimeouts(CONNECT_SECONDS * 1000, SEND_SECONDS * 1000, state.relay.answer_seconds * 1000)
    if not socket:connect("unix:" .. state.relay.socket) or not send(socket, ticket) then
        return failed(socket)
    end
    local status, headers = read_head(socket)
    if not status then
        return failed(socket)
    end
    local location = headers["x-accel-redirect"]
    if location then
        socket:close()
        return location
    end
    if status ~= 200 then
        return refused(socket, status, headers)
    end
    usage.begin(ticket, headers["content-type"])
    local complete = read_body(socket, headers, say)
    socket:close()
    -- Without the last chunk, the client sees that the answer is not complete.
    return ngx.exit(complete and ngx.HTTP_OK or ngx.ERROR)
end

return early
