# Writes a GPT (UEFI specification, 5.3) with an ESP and a Linux partition to a file of 256 MiB: gpt.pl FILE SECTOR-SIZE
use strict;
use warnings;

my ($file, $sector) = @ARGV;
my $sectors = 256 * 1024 * 1024 / $sector;
my $table = 128 * 128 / $sector;
my ($first, $last) = (1024 * 1024 / $sector, $sectors - 2 - $table);
my $middle = 64 * 1024 * 1024 / $sector;

sub crc {
    my $crc = 0xffffffff;
    for my $byte (unpack 'C*', shift) {
        $crc ^= $byte;
        $crc = $crc & 1 ? ($crc >> 1) ^ 0xedb88320 : $crc >> 1 for 1 .. 8;
    }
    return $crc ^ 0xffffffff;
}

sub guid {
    my @part = split /-/, shift;
    return pack('VvvH4H12', (map { hex } @part[0 .. 2]), @part[3, 4]);
}

sub entry {
    my ($type, $from, $to) = @_;
    my $unique = join '-', map { join '', map { sprintf '%x', rand 16 } 1 .. $_ } 8, 4, 4, 4, 12;
    return guid($type) . guid($unique) . pack('Q<Q<Q<x72', $from, $to - 1, 0);
}

my $entries = entry('c12a7328-f81f-11d2-ba4b-00a0c93ec93b', $first, $middle)
    . entry('0fc63daf-8483-4772-8e79-3d69d8477de4', $middle, $last);
$entries .= "\0" x (128 * 128 - length $entries);

sub header {
    my ($here, $there, $at) = @_;
    my $text = sub {
        'EFI PART' . pack 'VVVVQ<Q<Q<Q<a16Q<VVV', 0x10000, 92, shift, 0, $here, $there, $first, $last - 1,
            guid('11111111-2222-4333-8444-555555555555'), $at, 128, 128, crc($entries);
    };
    return $text->(crc($text->(0)));
}

open my $disk, '+>', $file or die "$file: $!";
truncate $disk, $sectors * $sector or die "$file: $!";
my $put = sub { seek $disk, shift() * $sector, 0; print $disk shift };
seek $disk, 446, 0;
print $disk pack 'C8VV', 0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, $sectors - 1;
seek $disk, 510, 0;
print $disk "\x55\xaa";
$put->(1, header(1, $sectors - 1, 2));
$put->(2, $entries);
$put->($sectors - 1 - $table, $entries);
$put->($sectors - 1, header($sectors - 1, 1, $sectors - 1 - $table));
close $disk or die "$file: $!";
