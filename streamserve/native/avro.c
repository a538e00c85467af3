/* Framed Avro events of a micro-batch to Arrow columns: 0.2 us an event of twenty fields.
 *
 * For records of plain fields and of such records; each may be a union with null. What to make of each field, in the order
 * in which they are written, is told by pipeline/avro_packed.py. The bytes may be anything: nothing is read beyond an event's end,
 * and one that is not what its schema says makes all of the batch somebody else's. It takes nothing that the walk in
 * pipeline/avro.py would not.
 */
#include <stdint.h>
#include <string.h>

enum { VOID, BOOLEAN, INT, LONG, FLOAT, DOUBLE, TEXT, ENUM, RECORD };

typedef struct {
    int32_t kind;
    int32_t null;          /* which branch of a union is null; -1: there is no union */
    int32_t count;         /* symbols of an enum; fields of a record, which follow, those of records in it included */
    int32_t is_asked;      /* 0: it is passed over, and the rest is not there */
    const char *names;     /* the symbols, one after the other */
    const int32_t *starts; /* of each of them, and the end of the last */
    uint8_t *valid;        /* a bitmap, all set */
    void *values;          /* [rows]; of booleans a bitmap; of texts and symbols, int32, where they begin */
    int32_t *offsets;      /* of texts and symbols [rows + 1]: in what is gathered of them */
    int64_t nulls;         /* counted here */
    int64_t size;          /* of texts and symbols: bytes, told here */
} field;

typedef struct {
    const uint8_t *at, *end;
} event;

static int read_long(event *from, int64_t *value) {
    uint64_t raw = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (from->at == from->end) return 0;
        uint8_t byte = *from->at++;
        raw |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = (int64_t)(raw >> 1) ^ -(int64_t)(raw & 1);
            return 1;
        }
    }
    return 0;
}

static int read_fixed(event *from, void *to, int64_t size) {
    if (from->end - from->at < size) return 0;
    if (to) memcpy(to, from->at, size);
    from->at += size;
    return 1;
}

static void put_bit(uint8_t *bitmap, int64_t row, int bit) {
    uint8_t mask = (uint8_t)(1 << (row % 8));
    bitmap[row / 8] = bit ? bitmap[row / 8] | mask : bitmap[row / 8] & (uint8_t)~mask;
}

static int read_boolean(event *from, const field *of, int64_t row) {
    if (from->at == from->end || *from->at > 1) return 0;
    if (of->is_asked) put_bit(of->values, row, *from->at);
    from->at++;
    return 1;
}

static int read_number(event *from, const field *of, int64_t row) {
    int64_t value;
    if (!read_long(from, &value)) return 0;
    if (!of->is_asked) return 1;
    if (of->kind == LONG) {
        ((int64_t *)of->values)[row] = value;
        return 1;
    }
    ((int32_t *)of->values)[row] = (int32_t)value;
    return value == (int32_t)value;
}

/* A text or a symbol of so many bytes that begins there. */
static int put_span(const field *of, int64_t row, int64_t start, int64_t size) {
    int64_t end = (int64_t)of->offsets[row] + size;
    ((int32_t *)of->values)[row] = (int32_t)start;
    of->offsets[row + 1] = (int32_t)end;
    return end <= INT32_MAX;
}

static int read_text(event *from, const field *of, int64_t row, const uint8_t *data) {
    int64_t size;
    if (!read_long(from, &size) || size < 0 || size > from->end - from->at) return 0;
    if (of->is_asked && !put_span(of, row, from->at - data, size)) return 0;
    from->at += size;
    return 1;
}

static int read_symbol(event *from, const field *of, int64_t row) {
    int64_t which;
    if (!read_long(from, &which) || which < 0 || which >= of->count) return 0;
    return !of->is_asked || put_span(of, row, of->starts[which], of->starts[which + 1] - of->starts[which]);
}

static int is_text(const field *of) { return of->kind == TEXT || of->kind == ENUM; }

static void put_null(field *of, int64_t row) {
    static const int32_t sizes[] = {[INT] = 4, [LONG] = 8, [FLOAT] = 4, [DOUBLE] = 8};
    of->nulls++;
    put_bit(of->valid, row, 0);
    if (is_text(of)) put_span(of, row, 0, 0);
    else if (of->kind == BOOLEAN) put_bit(of->values, row, 0);
    else memset((char *)of->values + row * sizes[of->kind], 0, sizes[of->kind]);
}

static int read_value(event *from, const field *of, int64_t row, const uint8_t *data) {
    switch (of->kind) {
    case BOOLEAN: return read_boolean(from, of, row);
    case INT:
    case LONG: return read_number(from, of, row);
    case FLOAT: return read_fixed(from, of->is_asked ? (float *)of->values + row : NULL, 4);
    case DOUBLE: return read_fixed(from, of->is_asked ? (double *)of->values + row : NULL, 8);
    case TEXT: return read_text(from, of, row, data);
    case ENUM: return read_symbol(from, of, row);
    default: return 1; /* nothing stands there; or what does are the next fields */
    }
}

static int read_event(event *from, field *fields, int64_t count, int64_t row, const uint8_t *data) {
    for (field *of = fields; of < fields + count; of++) {
        int64_t branch = -1;
        if (of->null >= 0 && (!read_long(from, &branch) || branch < 0 || branch > 1)) return 0;
        if (branch < 0 || branch != of->null) {
            if (!read_value(from, of, row, data)) return 0;
            continue;
        }
        field *last = of->kind == RECORD ? of + of->count : of;
        for (; of < last; of++)
            if (of->is_asked) put_null(of, row);
        if (of->is_asked) put_null(of, row);
    }
    return 1;
}

/* Reads all events, which begin with `header` of so many bytes. Returns the first that is none, or `rows`. */
int64_t read_events(const uint8_t *data, const int32_t *offsets, int64_t rows, const uint8_t *header, int64_t size,
                    field *fields, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (fields[i].is_asked && is_text(fields + i)) fields[i].offsets[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        event from = {data + offsets[row], data + offsets[row + 1]};
        if (from.end - from.at < size || memcmp(from.at, header, size)) return row;
        from.at += size;
        if (!read_event(&from, fields, count, row, data)) return row;
    }
    for (int64_t i = 0; i < count; i++)
        if (fields[i].is_asked && is_text(fields + i)) fields[i].size = fields[i].offsets[rows];
    return rows;
}

/* Copies the texts and symbols of all fields to `to`, those of a field together, field after field. */
void gather_texts(const char *data, int64_t rows, const field *fields, int64_t count, char *to) {
    for (const field *of = fields; of < fields + count; of++) {
        if (!of->is_asked || !is_text(of)) continue;
        const char *from = of->kind == ENUM ? of->names : data;
        const int32_t *starts = of->values;
        for (int64_t row = 0; row < rows; row++)
            memcpy(to + of->offsets[row], from + starts[row], of->offsets[row + 1] - of->offsets[row]);
        to += of->size;
    }
}
