/* Whole micro-batches through librdkafka: reads into columns, writes from columns, counts what the broker confirms.
 *
 * A message costs the client's Python binding 1.8 us to read with its accessors and 0.9 to write; here it is 0.3 and
 * 0.3 of the calling thread, and Python's lock is free meanwhile (ctypes releases it around each call). Nothing else
 * belongs here: what a batch means, where it starts, when it is committed is decided in Python.
 *
 * The library is a librdkafka plugin (`plugin.library.paths`): a client that is made with it calls `conf_init` and
 * then `on_new`, which is how its handle is learnt, by public interfaces alone. Everything that is declared here is
 * librdkafka's public C interface, rdkafka.h, unchanged since 1.4; the wheel of confluent-kafka brings the library
 * and no header.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

typedef void rk_t; /* rd_kafka_t, rd_kafka_topic_t, rd_kafka_queue_t, ...: opaque to us */

typedef struct { /* rd_kafka_message_t */
    int err;
    rk_t *topic;
    int32_t partition;
    void *value;
    size_t value_size;
    void *key;
    size_t key_size;
    int64_t offset;
    void *opaque;
} message;

typedef struct { /* rd_kafka_vu_t */
    int type;
    union {
        rk_t *pointer;
        int flags;
        int64_t number;
        struct { void *data; size_t size; } bytes;
        char pad[64];
    } of;
} field;

enum { TOPIC = 2, VALUE = 4, KEY = 5, FLAGS = 7, TIMESTAMP = 8, HEADERS = 10 }; /* rd_kafka_vtype_t */
enum { CHUNK = 512 }; /* messages taken before their bytes are looked at */
enum { COPY = 2, PRODUCER = 0, OUT_OF_MEMORY = -1, OUT_OF_RANGE = -140, PARTITION_EOF = -191 };

typedef int (*on_new_t)(rk_t *, const void *, void *, char *, size_t);
typedef int (*on_message_t)(rk_t *, message *, void *);

/* name, result, arguments */
#define API(X)                                                                                       \
    X(rd_kafka_conf_interceptor_add_on_new, int, (void *, const char *, on_new_t, void *))            \
    X(rd_kafka_interceptor_add_on_acknowledgement, int, (rk_t *, const char *, on_message_t, void *)) \
    X(rd_kafka_type, int, (const rk_t *))                                                             \
    X(rd_kafka_topic_new, rk_t *, (rk_t *, const char *, void *))                                     \
    X(rd_kafka_topic_destroy, void, (rk_t *))                                                         \
    X(rd_kafka_topic_name, const char *, (const rk_t *))                                              \
    X(rd_kafka_produceva, rk_t *, (rk_t *, const field *, size_t))                                    \
    X(rd_kafka_error_code, int, (const rk_t *))                                                       \
    X(rd_kafka_error_destroy, void, (rk_t *))                                                         \
    X(rd_kafka_headers_new, rk_t *, (size_t))                                                         \
    X(rd_kafka_headers_destroy, void, (rk_t *))                                                       \
    X(rd_kafka_header_add, int, (rk_t *, const char *, ssize_t, const void *, ssize_t))               \
    X(rd_kafka_header_get_all, int, (const rk_t *, size_t, const char **, const void **, size_t *))   \
    X(rd_kafka_message_headers, int, (const message *, rk_t **))                                      \
    X(rd_kafka_message_timestamp, int64_t, (const message *, int *))                                  \
    X(rd_kafka_message_errstr, const char *, (const message *))                                       \
    X(rd_kafka_message_destroy, void, (message *))                                                    \
    X(rd_kafka_queue_new, rk_t *, (rk_t *))                                                           \
    X(rd_kafka_queue_destroy, void, (rk_t *))                                                         \
    X(rd_kafka_queue_get_partition, rk_t *, (rk_t *, const char *, int32_t))                          \
    X(rd_kafka_queue_forward, void, (rk_t *, rk_t *))                                                 \
    X(rd_kafka_consume_batch_queue, ssize_t, (rk_t *, int, message **, size_t))

#define DECLARE(name, result, arguments) static result(*name) arguments;
API(DECLARE)

/* Finds librdkafka's functions in the library that is loaded already. Returns the first name that it lacks, or NULL. */
const char *bind_library(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return path;
#define FIND(name, result, arguments) \
    if (!(*(void **)&name = dlsym(library, #name))) return #name;
    API(FIND)
    return NULL;
}

/* ---- a client that was made with this plugin */

/* Never freed: 300 bytes a client, two clients a process. librdkafka acknowledges what is left undelivered while it is
 * destroyed, after its interceptors have been told of that. */
typedef struct {
    rk_t *rk;
    atomic_llong confirmed;
    atomic_llong failed;
    atomic_int first_error;
    char first_topic[256]; /* written once, before first_error */
} client;

static _Atomic(client *) newest;

static int on_acknowledgement(rk_t *rk, message *about, void *of) {
    client *one = of;
    (void)rk;
    if (!about->err) {
        atomic_fetch_add_explicit(&one->confirmed, 1, memory_order_relaxed);
        return 0;
    }
    if (atomic_fetch_add(&one->failed, 1) == 0) {
        strncpy(one->first_topic, rd_kafka_topic_name(about->topic), sizeof one->first_topic - 1);
        atomic_store(&one->first_error, about->err);
    }
    return 0;
}

static int on_new(rk_t *rk, const void *conf, void *of, char *error, size_t size) {
    client *one = calloc(1, sizeof *one);
    (void)conf, (void)of, (void)error, (void)size;
    if (!one) return OUT_OF_MEMORY;
    one->rk = rk;
    if (rd_kafka_type(rk) == PRODUCER &&
        rd_kafka_interceptor_add_on_acknowledgement(rk, "streamserve", on_acknowledgement, one))
        return OUT_OF_MEMORY;
    atomic_store(&newest, one);
    return 0;
}

/* librdkafka's entry to a plugin */
int conf_init(void *conf, void **opaque, char *error, size_t size) {
    (void)opaque, (void)error, (void)size;
    return rd_kafka_conf_interceptor_add_on_new(conf, "streamserve", on_new, NULL);
}

/* The client made last, once; whoever makes clients does so one at a time. */
client *take_client(void) { return atomic_exchange(&newest, NULL); }

/* counts: confirmed, failed. Returns the first error's code, 0 for none; topic points to its topic's name. */
int client_counts(client *one, int64_t counts[2], const char **topic) {
    counts[0] = atomic_load(&one->confirmed);
    counts[1] = atomic_load(&one->failed);
    *topic = one->first_topic;
    return atomic_load(&one->first_error);
}

/* ---- columns: Arrow's layout of binary arrays, and one of our own for headers */

typedef struct {
    const char *data;
    const int32_t *offsets;
    const uint8_t *valid; /* bitmap, NULL: all of them are */
    int64_t first_bit;
} column;

static int is_valid(const column *of, int64_t row) {
    int64_t bit = of->first_bit + row;
    return !of->valid || (of->valid[bit / 8] >> (bit % 8) & 1);
}

/* Headers of one record: for each an int32 size and the bytes of its name, then of its value (size -1: null). */
static char *put_sized(char *to, const void *from, int32_t size) {
    memcpy(to, &size, sizeof size);
    to += sizeof size;
    if (size > 0) memcpy(to, from, size);
    return size > 0 ? to + size : to;
}

static const char *get_sized(const char *from, const char **data, int32_t *size) {
    memcpy(size, from, sizeof *size);
    *data = *size < 0 ? NULL : from + sizeof *size;
    return from + sizeof *size + (*size > 0 ? *size : 0);
}

static rk_t *headers_of(const column *from, int64_t row) {
    const char *at = from->data + from->offsets[row], *end = from->data + from->offsets[row + 1];
    rk_t *headers = rd_kafka_headers_new(4);
    while (at < end) {
        const char *name, *value;
        int32_t name_size, value_size;
        at = get_sized(at, &name, &name_size);
        at = get_sized(at, &value, &value_size);
        rd_kafka_header_add(headers, name, name_size, value, value ? value_size : 0);
    }
    return headers;
}

/* ---- writing */

rk_t *topic_new(client *one, const char *name) { return rd_kafka_topic_new(one->rk, name, NULL); }

void topic_free(rk_t *topic) { rd_kafka_topic_destroy(topic); }

static field bytes_field(int type, const column *from, int64_t row) {
    field made = {.type = type};
    if (is_valid(from, row)) {
        made.of.bytes.size = from->offsets[row + 1] - from->offsets[row];
        made.of.bytes.data = made.of.bytes.size ? (void *)(from->data + from->offsets[row]) : (void *)"";
    }
    return made;
}

/* Produces rows [start, stop). Returns the row that it stopped before: `stop`, or the one that met *error. */
int64_t produce(client *one, rk_t *topic, int64_t start, int64_t stop, const column *keys, const column *values,
                const column *headers, const int64_t *timestamps, int *error) {
    *error = 0;
    for (int64_t row = start; row < stop; row++) {
        field fields[6] = {
            {.type = TOPIC, .of.pointer = topic},
            {.type = FLAGS, .of.flags = COPY},
            {.type = TIMESTAMP, .of.number = timestamps[row]},
            bytes_field(KEY, keys, row),
            bytes_field(VALUE, values, row),
        };
        size_t count = 5;
        rk_t *own = headers && is_valid(headers, row) ? headers_of(headers, row) : NULL;
        if (own) fields[count++] = (field){.type = HEADERS, .of.pointer = own};
        rk_t *refused = rd_kafka_produceva(one->rk, fields, count);
        if (refused) {
            *error = rd_kafka_error_code(refused);
            rd_kafka_error_destroy(refused);
            if (own) rd_kafka_headers_destroy(own);
            return row;
        }
    }
    return stop;
}

/* ---- reading */

typedef struct {
    client *of;
    rk_t *queue;
    struct { int32_t *partitions; int64_t *offsets; int64_t count, room; } ends; /* reached since the last fetch began */
    int capacity, count;
    message *held[];
} reader;

typedef struct {
    int64_t rows, key_bytes, value_bytes, header_bytes, header_rows;
    int64_t first_ns; /* CLOCK_MONOTONIC when the first message was there */
    int64_t ends;     /* ends of partitions that were reached, for `reader_ends` */
    int64_t errors;   /* messages that are errors of a partition; of the first: */
    int32_t error, partition;
    char text[512];
} batch_size;

typedef struct {
    int32_t *partitions;
    int64_t *offsets;
    int64_t *timestamps; /* -1: none */
    uint8_t *timestamp_types;
    char *keys;
    int32_t *key_offsets;
    uint8_t *key_valid; /* a byte a row */
    char *values;
    int32_t *value_offsets;
    uint8_t *value_valid;
    char *headers; /* these three: NULL where no row has headers */
    int32_t *header_offsets;
    uint8_t *header_valid;
} batch;

reader *reader_new(client *one, int capacity) {
    reader *made = calloc(1, sizeof *made + capacity * sizeof(message *));
    if (!made) return NULL;
    made->of = one;
    made->capacity = capacity;
    made->queue = rd_kafka_queue_new(one->rk);
    return made;
}

static void drop_held(reader *from) {
    for (int i = 0; i < from->count; i++) rd_kafka_message_destroy(from->held[i]);
    from->count = 0;
}

void reader_free(reader *one) {
    drop_held(one);
    rd_kafka_queue_destroy(one->queue);
    free(one->ends.partitions);
    free(one->ends.offsets);
    free(one);
}

/* What is fetched of a partition comes here from now on, and not through the consumer's poll; what waits in its own queue
 * is moved here. An assignment leaves a queue alone that was once forwarded; an unassignment cuts it off, later, and
 * then it leads nowhere until this is called again. Returns 0, or -1. */
int reader_take(reader *one, const char *topic, int32_t partition) {
    rk_t *queue = rd_kafka_queue_get_partition(one->of->rk, topic, partition);
    if (!queue) return -1;
    rd_kafka_queue_forward(queue, one->queue);
    rd_kafka_queue_destroy(queue);
    return 0;
}

static int64_t header_bytes(const message *of) {
    rk_t *headers;
    const char *name;
    const void *value;
    size_t size;
    int64_t total = 0;
    if (rd_kafka_message_headers(of, &headers)) return 0;
    for (size_t i = 0; !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++)
        total += 2 * sizeof(int32_t) + strlen(name) + (value ? size : 0);
    return total;
}

static void note(batch_size *size, const message *found) {
    if (found->err) {
        /* one that a person has to mend is told rather than one that the client mends itself, below 0 */
        int mends_itself = size->error < 0 && size->error != OUT_OF_RANGE;
        int worse = mends_itself && (found->err > 0 || found->err == OUT_OF_RANGE);
        if (size->errors++ && !worse) return;
        size->error = found->err;
        size->partition = found->partition;
        const char *text = rd_kafka_message_errstr(found);
        strncpy(size->text, text ? text : "", sizeof size->text - 1);
        return;
    }
    int64_t headers = header_bytes(found);
    size->rows++;
    size->key_bytes += found->key_size;
    size->value_bytes += found->value_size;
    size->header_bytes += headers;
    size->header_rows += headers > 0;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Notes the end that a message tells of, and lets it go. One for which there is no room is told again, with the next. */
static void note_end(reader *one, message *found) {
    if (one->ends.count == one->ends.room) {
        int64_t room = one->ends.room * 2 + 64;
        int32_t *partitions = realloc(one->ends.partitions, room * sizeof *partitions);
        if (partitions) one->ends.partitions = partitions;
        int64_t *offsets = partitions ? realloc(one->ends.offsets, room * sizeof *offsets) : NULL;
        if (offsets) one->ends.offsets = offsets, one->ends.room = room;
    }
    if (one->ends.count < one->ends.room) {
        one->ends.partitions[one->ends.count] = found->partition;
        one->ends.offsets[one->ends.count++] = found->offset;
    }
    rd_kafka_message_destroy(found);
}

/* The partitions whose end the last fetch reached, and where that is; they come in the order of their records. */
void reader_ends(const reader *one, int32_t *partitions, int64_t *offsets) {
    memcpy(partitions, one->ends.partitions, one->ends.count * sizeof *partitions);
    memcpy(offsets, one->ends.offsets, one->ends.count * sizeof *offsets);
}

/* Waits up to wait_ms for a first message, then up to fill_ms until there are fill_rows; takes what is there beyond
 * that, up to max_rows, and stops soon after max_bytes. The messages are held until `reader_pack` or the next call. */
void reader_fetch(reader *one, int wait_ms, int fill_rows, int fill_ms, int max_rows, int64_t max_bytes,
                  batch_size *size) {
    int64_t began = now_ns();
    drop_held(one);
    one->ends.count = 0;
    memset(size, 0, sizeof *size);
    if (max_rows > one->capacity) max_rows = one->capacity;
    int64_t bytes = 0;
    while (one->count < max_rows && bytes < max_bytes) {
        int64_t want = max_rows - one->count, wait = wait_ms;
        if (!one->count) {
            if (one->ends.count) wait -= (now_ns() - began) / 1000000;
            if (wait < 0) break;
            want = 1;
        } else {
            int64_t fitting = (max_bytes - bytes) / (bytes / one->count + 1) + 1;
            wait = fill_ms - (now_ns() - size->first_ns) / 1000000;
            if (one->count >= fill_rows || wait < 0) wait = 0;
            if (wait && want > fill_rows - one->count) want = fill_rows - one->count;
            if (want > fitting) want = fitting;
            if (want > CHUNK) want = CHUNK;
        }
        ssize_t got = rd_kafka_consume_batch_queue(one->queue, (int)wait, one->held + one->count, want);
        if (got <= 0) {
            if (wait && one->count) continue; /* the wait is over: once more for what has come meanwhile */
            break;
        }
        int kept = one->count;
        for (ssize_t i = 0; i < got; i++) {
            message *found = one->held[one->count + i];
            if (found->err == PARTITION_EOF) {
                note_end(one, found);
                continue;
            }
            one->held[kept++] = found;
            note(size, found);
            bytes += found->value_size + found->key_size;
        }
        if (!one->count && kept) size->first_ns = now_ns();
        one->count = kept;
        if (got < want && !wait) break;
    }
    size->ends = one->ends.count;
}

static void pack_headers(const message *from, int64_t row, batch *to, int32_t *at) {
    rk_t *headers;
    const char *name;
    const void *value;
    size_t size;
    char *end = to->headers + *at;
    to->header_offsets[row] = *at;
    if (!rd_kafka_message_headers(from, &headers))
        for (size_t i = 0; !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++) {
            end = put_sized(end, name, (int32_t)strlen(name));
            end = put_sized(end, value, value ? (int32_t)size : -1);
        }
    to->header_valid[row] = end != to->headers + *at;
    *at = (int32_t)(end - to->headers);
}

static int32_t pack_bytes(char *data, int32_t at, const void *from, size_t size, uint8_t *valid) {
    *valid = from != NULL;
    if (from) memcpy(data + at, from, size);
    return at + (from ? (int32_t)size : 0);
}

/* Copies what is held into arrays of the sizes that `reader_fetch` told, and lets it go. */
void reader_pack(reader *one, batch *to) {
    int64_t row = 0;
    int32_t key = 0, value = 0, header = 0;
    for (int i = 0; i < one->count; i++) {
        const message *from = one->held[i];
        if (from->err) continue;
        int type = 0;
        int64_t stamp = rd_kafka_message_timestamp(from, &type);
        to->partitions[row] = from->partition;
        to->offsets[row] = from->offset;
        to->timestamps[row] = type ? stamp : -1;
        to->timestamp_types[row] = (uint8_t)type;
        to->key_offsets[row] = key;
        key = pack_bytes(to->keys, key, from->key, from->key_size, to->key_valid + row);
        to->value_offsets[row] = value;
        value = pack_bytes(to->values, value, from->value, from->value_size, to->value_valid + row);
        if (to->headers) pack_headers(from, row, to, &header);
        row++;
    }
    to->key_offsets[row] = key;
    to->value_offsets[row] = value;
    if (to->headers) to->header_offsets[row] = header;
    drop_held(one);
}
