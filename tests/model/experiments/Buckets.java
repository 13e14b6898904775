// Numbers of docs/experiments.md by XXH3-64 as its specification has it, for inputs of 4 to 64 bytes.
// Arguments: salt and unit, again and again. Prints one number a line.
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;

class Buckets {
    static final ByteBuffer SECRET = little(HexFormat.of().parseHex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        + "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"));

    static ByteBuffer little(byte[] bytes) {
        return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    static long fold(long one, long other) {
        long high = Math.multiplyHigh(one, other) + ((one >> 63) & other) + ((other >> 63) & one);
        return one * other ^ high;
    }

    static long avalanche(long hash) {
        hash = (hash ^ hash >>> 37) * 0x165667919E3779F9L;
        return hash ^ hash >>> 32;
    }

    static long mix(ByteBuffer in, int at, int secret) {
        return fold(in.getLong(at) ^ SECRET.getLong(secret), in.getLong(at + 8) ^ SECRET.getLong(secret + 8));
    }

    static long hash(byte[] bytes) {
        ByteBuffer in = little(bytes);
        int length = bytes.length;
        if (length <= 8) {
            long keyed = (in.getInt(length - 4) & 0xFFFFFFFFL) + ((long) in.getInt(0) << 32);
            keyed ^= SECRET.getLong(8) ^ SECRET.getLong(16);
            keyed ^= Long.rotateLeft(keyed, 49) ^ Long.rotateLeft(keyed, 24);
            keyed *= 0x9FB21C651E98DF25L;
            keyed ^= (keyed >>> 35) + length;
            keyed *= 0x9FB21C651E98DF25L;
            return keyed ^ keyed >>> 28;
        }
        if (length <= 16) {
            long low = in.getLong(0) ^ SECRET.getLong(24) ^ SECRET.getLong(32);
            long high = in.getLong(length - 8) ^ SECRET.getLong(40) ^ SECRET.getLong(48);
            return avalanche(length + Long.reverseBytes(low) + high + fold(low, high));
        }
        long sum = length * 0x9E3779B185EBCA87L;
        for (int pair = (length - 1) / 32; pair >= 0; pair--) {
            sum += mix(in, 16 * pair, 32 * pair) + mix(in, length - 16 * (pair + 1), 32 * pair + 16);
        }
        return avalanche(sum);
    }

    public static void main(String[] arguments) {
        for (int place = 0; place < arguments.length; place += 2) {
            String text = arguments[place] + '\0' + arguments[place + 1];
            System.out.println(Long.remainderUnsigned(hash(text.getBytes(StandardCharsets.UTF_8)), 10_000));
        }
    }
}
