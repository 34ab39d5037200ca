-- Finds the model in a JSON body of any size, in small and constant memory.
--
-- The router reads the same body with another parser. If the two could disagree about the model, a tenant could reach
-- a model that it may not ask for. So this reader accepts only what every parser reads alike: one object, brackets
-- that match, at most 100 levels, exactly one field "model" at the top, which is a string, and no other field there
-- whose name differs from "model" only by case or has an escape. Everything else is refused, not interpreted.
--
-- A step costs about 0.4 us of the one worker process, so the number of steps has a bound, and other requests run after
-- each STEPS_AT_ONCE. Long text, images in base64 and lists of numbers take few steps.
local cjson = require "cjson.safe"

local find, byte, sub, lower = string.find, string.byte, string.sub, string.lower

local body = {}

local MAX_LEVELS = 100
-- Of a served name; longer text is not a name.
local MAX_CAPTURED = 1024
local CHUNK_BYTES = 16384
-- After so many pieces, and after so many steps, other requests run. Either takes about 2 ms.
local CHUNKS_AT_ONCE = 16
local STEPS_AT_ONCE = 4096
local MAX_STEPS = 1000000

local QUOTE, BACKSLASH, COLON, COMMA = byte('"'), byte("\\"), byte(":"), byte(",")
local CLOSES = { [byte "{"] = byte "}", [byte "["] = byte "]" }
-- Inside a string: its end, an escape, or a control character, which JSON forbids there.
local IN_STRING = '["\\%z\1-\31]'
local NO_SPACE = "[^ \t\r\n]"
-- The first character that is neither of a number, a word, a separator nor white space.
local NO_SCALAR = "[^%w%+%-%., :\t\r\n]"
local AFTER_SCALAR = "[^%w%+%-%.]"

local Reader = {}
Reader.__index = Reader

-- `expects` is what may come next in the outermost object: start, first (a key or the end), key, colon, value, next
-- (a comma or the end) or nothing. `pause` is called between two parts of a long work.
--
-- `passed` are the bytes of the pieces before the present one. `from` and `to` are the places of the quotes around the
-- model, counted from 1. `adapts` is whether there is a field with which a client would choose an adapter past its name.
function body.reader(pause)
    return setmetatable({ expects = "start", levels = {}, depth = 0, steps = 0, passed = 0, pause = pause }, Reader)
end

function Reader:open_string(captured)
    self.in_string, self.escape, self.has_escape = true, false, false
    self.captured = captured and {} or nil
    self.captured_bytes = 0
end

function Reader:capture(text)
    if self.captured and self.captured_bytes <= MAX_CAPTURED then
        self.captured_bytes = self.captured_bytes + #text
        self.captured[#self.captured + 1] = text
    end
end

function Reader:close_string()
    self.in_string = false
    if self.depth ~= 1 then
        return nil
    end
    local text = self.captured and table.concat(self.captured)
    if self.expects == "first" or self.expects == "key" then
        if self.has_escape then
            return "the name of a field has an escape; write it as it is"
        end
        if lower(text) == "model" then
            if text ~= "model" or self.key_seen then
                return "there must be exactly one field \"model\""
            end
            self.key_seen = true
        end
        self.adapts = self.adapts or text == "lora_path"
        self.key, self.expects = text, "colon"
        return nil
    end
    if self.key == "model" then
        self.model = self.captured_bytes <= MAX_CAPTURED and text or ""
    end
    self.expects = "next"
    return nil
end

-- Reads on inside a string; returns the next position.
function Reader:read_string(text, at)
    if self.escape then
        self.escape = false
        self:capture(sub(text, at, at))
        return at + 1
    end
    local stop = find(text, IN_STRING, at)
    if not stop then
        self:capture(sub(text, at))
        return #text + 1
    end
    local char = byte(text, stop)
    if char == QUOTE then
        self:capture(sub(text, at, stop - 1))
        local fault = self:close_string()
        if self.model and not self.to then
            self.to = self.passed + stop
        end
        return stop + 1, fault
    end
    if char ~= BACKSLASH then
        return nil, "a string has a control character"
    end
    self:capture(sub(text, at, stop))
    self.escape, self.has_escape = true, true
    return stop + 1
end

function Reader:open(char)
    self.depth = self.depth + 1
    if self.depth > MAX_LEVELS then
        return "it has more than " .. MAX_LEVELS .. " levels"
    end
    self.levels[self.depth] = CLOSES[char]
    return nil
end

function Reader:close(char)
    if self.levels[self.depth] ~= char then
        return "its brackets do not match"
    end
    self.depth = self.depth - 1
    if self.depth == 0 then
        self.expects = "nothing"
    elseif self.depth == 1 then
        self.expects = "next"
    end
    return nil
end

-- Below the outermost object only strings and brackets matter.
function Reader:read_below(text, at)
    local stop = find(text, NO_SCALAR, at)
    if not stop then
        return #text + 1
    end
    local char = byte(text, stop)
    if char == QUOTE then
        self:open_string(false)
        return stop + 1
    end
    if CLOSES[char] then
        return stop + 1, self:open(char)
    end
    return stop + 1, self:close(char)
end

function Reader:read_value(text, at, char)
    if char == QUOTE then
        self:open_string(self.key == "model")
        if self.key == "model" then
            self.from = self.passed + at
        end
        return at + 1
    end
    if self.key == "model" then
        return nil, "the field \"model\" must be a string"
    end
    if CLOSES[char] then
        return at + 1, self:open(char)
    end
    local stop = find(text, AFTER_SCALAR, at) or #text + 1
    if stop == at then
        return nil, "a value is missing"
    end
    -- The scalar may go on in the next piece.
    if self.key == "stream" then
        self.stream = sub(text, at, stop - 1) == "true"
    end
    self.expects = "next"
    self.in_scalar = stop > #text
    return stop
end

local FAULT = "it is not one JSON object"

-- In the outermost object.
function Reader:read_top(text, at)
    if self.in_scalar then
        local stop = find(text, AFTER_SCALAR, at) or #text + 1
        self.in_scalar = stop > #text
        at = stop
    end
    local stop = find(text, NO_SPACE, at)
    if not stop then
        return #text + 1
    end
    local char, expects = byte(text, stop), self.expects
    if expects == "value" then
        return self:read_value(text, stop, char)
    elseif char == QUOTE and (expects == "first" or expects == "key") then
        self:open_string(true)
    elseif char == COLON and expects == "colon" then
        self.expects = "value"
    elseif char == COMMA and expects == "next" then
        self.expects = "key"
    elseif char == byte "}" and (expects == "first" or expects == "next") then
        return stop + 1, self:close(char)
    else
        return nil, FAULT
    end
    return stop + 1
end

-- Reads one piece. Returns nil, or what is wrong.
function Reader:feed(text)
    local at, size, fault = 1, #text, nil
    while at <= size do
        self.steps = self.steps + 1
        if self.steps > MAX_STEPS then
            return "it has more than " .. MAX_STEPS .. " strings, brackets and escapes"
        end
        if self.steps % STEPS_AT_ONCE == 0 then
            self.pause()
        end
        if self.in_string then
            at, fault = self:read_string(text, at)
        elseif self.depth > 1 then
            at, fault = self:read_below(text, at)
        elseif self.depth == 1 then
            at, fault = self:read_top(text, at)
        else
            local stop = find(text, NO_SPACE, at)
            if not stop then
                return nil
            end
            if self.expects ~= "start" or byte(text, stop) ~= byte "{" then
                return FAULT
            end
            self.expects = "first"
            at, fault = stop + 1, self:open(byte "{")
        end
        if fault then
            return fault
        end
    end
    self.passed = self.passed + size
    return nil
end

-- After the last piece: the model, or nil and what is wrong. Further results: whether it asks for a stream, and where the
-- model is written.
function Reader:finish()
    if self.expects ~= "nothing" then
        return nil, FAULT
    end
    if not self.model then
        return nil, "the field \"model\" is missing"
    end
    -- A name may be written with escapes: PHP writes a slash as \/.
    local names = cjson.decode('["' .. self.model .. '"]')
    local name = names and names[1]
    if type(name) ~= "string" or not find(name, "^[!-~]+$") then
        return nil, "the field \"model\" is no served name"
    end
    return name, nil, self.stream, { from = self.from, to = self.to, adapts = self.adapts }
end

-- The body of the present request as an open file; nil if it is in memory. A client may leave at every pause, and then
-- nothing after the pause runs. So requests.finish closes what is open: until Lua collects it, it would keep its place
-- on the disk.
function body.open()
    local path = ngx.req.get_body_file()
    local file = path and assert(io.open(path, "rb"))
    ngx.ctx.open_body = file
    return file
end

function body.close()
    local file = ngx.ctx.open_body
    if file then
        ngx.ctx.open_body = nil
        file:close()
    end
end

-- The length of the body of the present request.
function body.bytes()
    local file = body.open()
    local bytes = file and file:seek("end") or #(ngx.req.get_body_data() or "")
    body.close()
    return bytes
end

-- The model of the present request, whose body has been read: its name, or nil and what is wrong. The third result is
-- whether it asks for a stream, which may be missed in a long body. The fourth has `from`, `to` and `adapts` of the reader.
-- A long body is read in pieces, and other requests run between two of them. `pause` lets them run.
function body.model(pause)
    local reader = body.reader(pause)
    local file = body.open()
    if not file then
        local fault = reader:feed(ngx.req.get_body_data() or "")
        if fault then
            return nil, fault
        end
        return reader:finish()
    end
    local piece, fault, count = file:read(CHUNK_BYTES), nil, 0
    while piece and not fault do
        fault = reader:feed(piece)
        piece = file:read(CHUNK_BYTES)
        count = count + 1
        if count % CHUNKS_AT_ONCE == 0 then
            pause()
        end
    end
    body.close()
    if fault then
        return nil, fault
    end
    return reader:finish()
end

-- Writes other JSON in place of the model of the present request, at the place that body.model gave. `small`: up to so many
-- bytes a body stays in memory.
function body.replace(place, text, small, pause)
    local file = body.open()
    if not file then
        local whole = ngx.req.get_body_data()
        ngx.req.set_body_data(sub(whole, 1, place.from - 1) .. text .. sub(whole, place.to + 1))
        return
    end
    ngx.req.init_body(small)
    local passed, count = 0, 0
    local piece = file:read(CHUNK_BYTES)
    while piece do
        local first, last = place.from - passed, place.to - passed
        passed = passed + #piece
        if first >= 1 and first <= #piece then
            ngx.req.append_body(sub(piece, 1, first - 1) .. text)
        elseif first > #piece or last < 1 then
            ngx.req.append_body(piece)
        end
        if last >= 1 and last < #piece then
            ngx.req.append_body(sub(piece, last + 1))
        end
        piece = file:read(CHUNK_BYTES)
        count = count + 1
        if count % CHUNKS_AT_ONCE == 0 then
            pause()
        end
    end
    ngx.req.finish_body()
    body.close()
end

return body
